"""One phase on the ranks of this job: from its first step, or from its latest checkpoint, to its end."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from onediff.config.run import RunConfig
from onediff.data.loader import load
from onediff.parallel.topology import Topology
from onediff.runs.folder import RunFolder
from onediff.runs.goodput import goodput_metrics
from onediff.runs.section import keep_heartbeat, stage
from onediff.training.checkpoint import latest_checkpoint
from onediff.training.data import manifest_files
from onediff.training.features import check_features
from onediff.training.loop import train_phase
from onediff.training.memory import snapshot_on_out_of_memory
from onediff.training.phase import build_phase
from onediff.training.profile import profiled
from onediff.training.state import resume as take_up_checkpoint
from onediff.training.stop import StopRequest
from onediff.zero.nvme import swap_folder


def run_phase(
    config: RunConfig, name: str, folder: RunFolder, topology: Topology, tracker: Any, stop: StopRequest, resume: bool
) -> None:
    """Trains one phase; with `resume`, from its latest checkpoint. Collective.

    Raises Stopped, TrainingFault, or UserError on every rank.
    """
    rank = topology.ranks.rank
    if rank == 0:
        keep_heartbeat(folder.path, name)
        stage("loading")
    checkpoint = latest_checkpoint(folder.checkpoints(name)) if resume else None
    snapshot = folder.logs / f"memory.phase-{name}.rank{rank}.pickle"
    with swap_folder(config.parallel, folder.path, topology.ranks) as swap, snapshot_on_out_of_memory(snapshot):
        phase, tags = build_phase(config, name, folder, topology, stop, resumes=checkpoint is not None, swap=swap)
        # Dropout differs between ranks; a checkpoint brings its own random states.
        torch.manual_seed(config.training.seed + 1000 * topology.dp_rank)
        if checkpoint is not None:
            take_up_checkpoint(phase, checkpoint, config.data)
        check_features(phase.stream, phase.engine.model.vision, config)
        if rank == 0:
            phase.tracker = phase.measures.tracker = tracker.phase(name, resumed_step=phase.step, tags=tags)
            for manifest in manifest_files(config.data, phase.config):
                tracker.dataset(manifest, "training")
        micro_batch, device = phase.share.micro_batch, phase.engine.device
        with profiled(phase):
            metrics = train_phase(phase, load(phase.stream, micro_batch, phase.cursor, config.data, topology, device))
        if rank == 0:
            folder.finish(name, {"step": phase.step, **metrics})
            phase.tracker.log(phase.step, goodput_metrics(folder.path, name))
            phase.tracker.finish("FINISHED")
        phase.engine.close()
        dist.barrier()  # every rank looks for this marker before the next phase
