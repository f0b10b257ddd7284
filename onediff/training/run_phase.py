"""One phase on the ranks of this job: from its first step, or from its latest checkpoint, to its end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from onediff.config.data import DataConfig
from onediff.config.run import RunConfig
from onediff.data.loader import load
from onediff.errors import UserError
from onediff.parallel.topology import Topology
from onediff.runs.folder import RunFolder
from onediff.runs.goodput import goodput_metrics
from onediff.runs.section import keep_heartbeat, stage
from onediff.training.checkpoint import latest_checkpoint
from onediff.training.checkpoint.copies import PeerCopies, newest_copy
from onediff.training.checkpoint.folder import step_of
from onediff.training.data import manifest_files
from onediff.training.features import check_features
from onediff.training.loop import train_phase
from onediff.training.memory import snapshot_on_out_of_memory
from onediff.training.phase import Phase, build_phase
from onediff.training.profile import profiled
from onediff.training.state import joined
from onediff.training.state import resume as resume_from
from onediff.training.stop import StopRequest
from onediff.zero.nvme import swap_folder

log = logging.getLogger(__name__)


def run_phase(
    config: RunConfig,
    name: str,
    folder: RunFolder,
    topology: Topology,
    tracker: Any,
    stop: StopRequest,
    resume: bool,
    memory: Path | None = None,
) -> None:
    """Trains one phase; with `resume`, from its latest checkpoint, or from a later copy. Collective.

    `memory` is this node's folder for copies, if the phase makes any.
    Raises Stopped, TrainingFault, or UserError on every rank.
    """
    rank = topology.ranks.rank
    if rank == 0:
        keep_heartbeat(folder.path, name)
        stage("loading")
    checkpoint = latest_checkpoint(folder.checkpoints(name)) if resume else None
    saved = step_of(checkpoint) if checkpoint is not None else 0
    copy = newest_copy(memory, topology.ranks, saved, joined) if memory is not None and resume else None
    resumes = checkpoint is not None or copy is not None
    snapshot = folder.logs / f"memory.phase-{name}.rank{rank}.pickle"
    with swap_folder(config.parallel, folder.path, topology.ranks) as swap, snapshot_on_out_of_memory(snapshot):
        stop.check_before_first_step()
        phase, tags = build_phase(config, name, folder, topology, stop, resumes=resumes, swap=swap)
        # Dropout differs between ranks; a checkpoint restores its own random states.
        torch.manual_seed(config.training.seed + 1000 * topology.dp_rank)
        stop.check_before_first_step()
        copy = restored(phase, checkpoint, copy, config.data)
        if memory is not None and (wanted := config.training.peer_copies) is not None:
            phase.copies = PeerCopies(memory, wanted.repeat_at_most // 2, topology.ranks, copy)
            phase.copies.require_room(phase.engine.sharded)
        stop.check_before_first_step()
        check_features(phase.stream, phase.engine.model.vision, config)
        if rank == 0:
            phase.tracker = phase.measures.tracker = tracker.phase(name, resumed_step=phase.step, tags=tags)
            for data_set, manifest in manifest_files(config.data, phase.config).items():
                tracker.dataset(manifest, "training", data_set)
        micro_batch, device = phase.share.micro_batch, phase.engine.device
        with profiled(phase):
            metrics = train_phase(phase, load(phase.stream, micro_batch, phase.cursor, config.data, topology, device))
        if phase.copies is not None:
            phase.copies.forget()
        if rank == 0:
            folder.finish(name, {"step": phase.step, **metrics})
            phase.tracker.log(phase.step, goodput_metrics(folder.path, name))
            phase.tell_checkpoints()  # the last one may have been evaluated after it was written
            phase.tracker.finish("FINISHED")
        phase.engine.close()
        dist.barrier()  # every rank looks for this marker before the next phase


def restored(phase: Phase, checkpoint: Path | None, copy: Path | None, data: DataConfig) -> Path | None:
    """Restores the copy, or the checkpoint if there is no usable copy; returns the copy if it was used. Collective.

    Raises UserError on every rank if neither can be used.
    """
    if copy is not None:
        try:
            resume_from(phase, copy, data)
            # No checkpoint holds this step: a stop before the next one must write one.
            phase.saved = step_of(checkpoint) if checkpoint is not None else 0
            return copy
        except UserError as fault:
            log.warning("the copy of this phase in memory cannot be used: %s", fault)
            if checkpoint is None:
                raise
    if checkpoint is not None:
        resume_from(phase, checkpoint, data)
    return None
