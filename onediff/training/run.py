"""A run on the ranks of this job: its phases in order, each starting from the previous one's weights."""

from __future__ import annotations

import gc
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch.distributed as dist

from onediff.config.run import RunConfig
from onediff.errors import EXIT_NOT_A_NUMBER, EXIT_STOPPED, UserError
from onediff.model import attention
from onediff.parallel.accelerator import be_deterministic
from onediff.parallel.agreement import gathered, raise_on_all_ranks
from onediff.parallel.ranks import initialize_distributed, shutdown
from onediff.parallel.topology import Topology, create_topology
from onediff.runs.folder import RunFolder
from onediff.runs.section import stage
from onediff.runs.sole import sole_training
from onediff.tracking import NodeMetrics
from onediff.tracking.overview import is_run
from onediff.training.faults import TrainingFault
from onediff.training.heap import keep_freed_memory
from onediff.training.prepare import prepare
from onediff.training.record import conclude, open_tracker, tell_end
from onediff.training.run_phase import run_phase
from onediff.training.start import check_model
from onediff.training.stop import Stopped, StopRequest

log = logging.getLogger(__name__)


def train(config: RunConfig, path: Path, phases: Sequence[str], resume: bool, peer_copies: Path | None = None) -> int:
    """Trains `phases` of `config` in the run folder `path` on all ranks of this job; returns the exit code.

    Finished phases are skipped. With `resume`, a phase continues from its latest checkpoint, or from a later copy in
    `peer_copies`, this node's folder in memory.
    """
    folder = RunFolder(path)
    keep_freed_memory()
    topology = join(config, folder)
    ranks = topology.ranks
    lock: IO[str] | None = None
    with raise_on_all_ranks():
        attention.use(config.training.attention)
        for name in phases:  # the last one too, which may begin in hours
            if not folder.finished(name):
                check_model(config.model, config.phases[name], name, config.of_phase(name).parallel)
        if ranks.rank == 0:
            lock = sole_training(folder.path)
            prepare(folder, config)
    # Jobs say --resume from their first start on.
    if resume and ranks.rank == 0 and is_run(path) and not (path / "checkpoints").is_dir():
        log.warning("nothing to resume in %s: the run starts from the beginning", path)
    stop = StopRequest()
    memory = peer_copies if config.training.peer_copies is not None else None
    hosts = ",".join(dict.fromkeys(gathered(socket.gethostname())))
    tracker = open_tracker(config, folder, topology, hosts) if ranks.rank == 0 else None
    meters = NodeMetrics(folder.path, config.tracking).start() if ranks.local_rank == 0 else None
    code, state, reason = 0, "finished", None
    try:
        for name in phases:
            if finished := folder.finished(name):
                log.info("phase %s is already finished (%d steps)", name, finished["step"])
                continue
            run_phase(config.of_phase(name), name, folder, topology, tracker, stop, resume, memory)
            gc.collect()  # engines hold reference cycles, and the next one needs their memory
    except Stopped as stopped:
        code, state, reason = EXIT_STOPPED, "stopped", str(stopped)
    except TrainingFault as fault:
        code, state, reason = EXIT_NOT_A_NUMBER, "failed", str(fault)
    except UserError as fault:
        if tracker is not None:
            conclude(folder, tracker, "failed", str(fault))
        raise
    stop.ignore_more()
    stage("closing")
    if meters is not None:
        meters.stop()
    dist.barrier()  # records written after the end are never sent
    if ranks.rank == 0:
        assert tracker is not None
        conclude(folder, tracker, state, reason)
        tell_end(folder, config.tracking, state, reason, ranks.world)
    shutdown()
    if lock is not None:
        lock.close()
    return code


def join(config: RunConfig, folder: RunFolder) -> Topology:
    """Joins the other ranks and starts logging. Collective."""
    if config.training.deterministic:
        be_deterministic()
    ranks = initialize_distributed(tensor=config.parallel.tensor, flight_records=folder.logs)
    _log_to(folder, ranks.rank)
    return create_topology(config.parallel, ranks)


def _log_to(folder: RunFolder, rank: int) -> None:
    """Rank 0 logs to the terminal and to a file, the others to a file only."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(folder.logs / f"train.rank{rank}.log")]
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stderr))
    logging.basicConfig(
        level=logging.INFO, handlers=handlers, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
