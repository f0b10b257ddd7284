"""A run on the ranks of this job: its phases in order, each from the weights of the one before."""

from __future__ import annotations

import gc
import logging
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from onediff.config.run import RunConfig
from onediff.data.loader import load
from onediff.errors import EXIT_NOT_A_NUMBER, EXIT_STOPPED, UserError
from onediff.model import attention
from onediff.parallel.accelerator import be_deterministic
from onediff.parallel.agreement import gathered, raise_on_all_ranks
from onediff.parallel.ranks import initialize_distributed, shutdown
from onediff.parallel.topology import Topology, create_topology
from onediff.runs.folder import RunFolder
from onediff.runs.goodput import goodput_metrics
from onediff.runs.section import keep_heartbeat, stage
from onediff.tracking import NodeMetrics, Tracker
from onediff.tracking.place import how_to_look, tracking_uri
from onediff.tracking.scrub import scrubbed
from onediff.training.checkpoint import latest_checkpoint
from onediff.training.data import manifest_files
from onediff.training.faults import TrainingFault
from onediff.training.features import check_features
from onediff.training.loop import train_phase
from onediff.training.memory import snapshot_on_out_of_memory
from onediff.training.phase import build_phase
from onediff.training.prepare import prepare
from onediff.training.profile import profiled
from onediff.training.state import resume as take_up_checkpoint
from onediff.training.stop import Stopped, StopRequest
from onediff.zero.nvme import swap_folder

log = logging.getLogger(__name__)


def train(config: RunConfig, path: Path, phases: Sequence[str], resume: bool) -> int:
    """Trains `phases` of `config` in the run folder `path` on all ranks of this job; returns the exit code.

    A finished phase is not repeated. With `resume` a phase goes on from its latest checkpoint.
    """
    folder = RunFolder(path)
    topology = join(config, folder)
    ranks = topology.ranks
    with raise_on_all_ranks():
        attention.use(config.training.attention)
        if ranks.rank == 0:
            prepare(folder, config)
    if resume and ranks.rank == 0 and not (path / "checkpoints").is_dir():
        log.warning("nothing to resume in %s: the run starts from its beginning", path)
    stop = StopRequest()
    hosts = ",".join(dict.fromkeys(gathered(socket.gethostname())))
    tracker = open_tracker(config, folder, topology, hosts) if ranks.rank == 0 else None
    meters = NodeMetrics(folder.path, config.tracking).start() if ranks.local_rank == 0 else None
    code, state, reason = 0, "finished", None
    try:
        for name in phases:
            if finished := folder.finished(name):
                log.info("phase %s is finished already (%d steps)", name, finished["step"])
                continue
            if ranks.rank == 0:
                keep_heartbeat(path, name)
                stage("loading")
            of_phase = config.of_phase(name)
            snapshot = folder.logs / f"memory.phase-{name}.rank{ranks.rank}.pickle"
            with swap_folder(of_phase.parallel, path, ranks) as swap, snapshot_on_out_of_memory(snapshot):
                run_phase(of_phase, name, folder, topology, tracker, stop, resume, swap)
            gc.collect()  # engines hold themselves in circles, and the next one needs their memory
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
    dist.barrier()  # what any node still wrote behind the end would be left unsent
    if ranks.rank == 0:
        assert tracker is not None
        conclude(folder, tracker, state, reason)
        if reason:
            log.error("%s: %s", state, reason)
        if code == EXIT_STOPPED and "SLURM_JOB_ID" not in os.environ:
            log.info("go on with the same command and --resume, or: %s", how_to_go_on(folder.path, ranks.world))
        log.info("%s is in %s", "everything" if code == 0 else "what there is", folder.path)
        if config.tracking.live:
            log.info("look at it with: %s", how_to_look(scrubbed(tracking_uri(folder.path, config.tracking))))
    shutdown()
    return code


def join(config: RunConfig, folder: RunFolder) -> Topology:
    """Joins the other ranks, and begins to log. Collective."""
    if config.training.deterministic:
        be_deterministic()
    ranks = initialize_distributed(tensor=config.parallel.tensor, flight_records=folder.logs)
    _log_to(folder, ranks.rank)
    return create_topology(config.parallel, ranks)


def conclude(folder: RunFolder, tracker: Any, state: str, reason: str | None) -> None:
    """Says in the run folder and in the tracking how the run ended: `finished`, `stopped` or `failed`."""
    folder.write_status(**{**(folder.status() or {}), "state": state, "reason": reason})
    tracker.finish({"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[state])


def run_phase(
    config: RunConfig,
    name: str,
    folder: RunFolder,
    topology: Topology,
    tracker: Any,
    stop: StopRequest,
    resume: bool,
    swap: Path | None = None,
) -> None:
    """Trains one phase, from its first step or its latest checkpoint; `swap` is for optimizer states on NVMe. Collective.

    Raises Stopped, TrainingFault, or UserError on every rank.
    """
    checkpoint = latest_checkpoint(folder.checkpoints(name)) if resume else None
    phase, tags = build_phase(config, name, folder, topology, stop, resumes=checkpoint is not None, swap=swap)
    # Dropout differs between ranks; a checkpoint brings its own random states.
    torch.manual_seed(config.training.seed + 1000 * topology.dp_rank)
    if checkpoint is not None:
        take_up_checkpoint(phase, checkpoint, config.data)
    check_features(phase.stream, phase.engine.model.vision, config)
    if phase.rank == 0:
        phase.tracker = phase.measures.tracker = tracker.phase(name, resumed_step=phase.step, tags=tags)
        for manifest in manifest_files(config.data, phase.config):
            tracker.dataset(manifest, "training")
    micro_batch, device = phase.share.micro_batch, phase.engine.device
    with profiled(phase):
        metrics = train_phase(phase, load(phase.stream, micro_batch, phase.cursor, config.data, topology, device))
    if phase.rank == 0:
        folder.finish(name, {"step": phase.step, **metrics})
        phase.tracker.log(phase.step, goodput_metrics(folder.path, name))
        phase.tracker.finish("FINISHED")
    phase.engine.close()
    dist.barrier()  # the next phase looks for the marker on every rank


def how_to_go_on(run: Path, processes: int) -> str:
    """The command that takes up a stopped run on this machine."""
    several = f" --processes {processes}" if processes > 1 else ""
    return f"onediff train {shlex.quote(str(run))}{several} --resume"


def open_tracker(config: RunConfig, folder: RunFolder, topology: Topology, hosts: str) -> Any:
    """The tracker of this run, found again where the run goes on."""
    tags = {
        "host": hosts,
        "world_size": topology.ranks.world,
        "data_parallel": topology.dp_size,
        "tensor_parallel": topology.tp_size,
        "attention": attention.in_use(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    return Tracker.open(
        folder.path,
        config.tracking,
        run_name=folder.path.resolve().name,
        params=config.model_dump(mode="json"),
        tags=tags,
    )


def _log_to(folder: RunFolder, rank: int) -> None:
    """Rank 0 to the terminal and to a file, the others to their file only."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(folder.logs / f"train.rank{rank}.log")]
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stderr))
    logging.basicConfig(
        level=logging.INFO, handlers=handlers, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
