"""Opens a run's tracker, and records how the run ended: in its folder, in the tracker, and in the log."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import Any

import torch

from onediff.config.run import RunConfig
from onediff.config.tracking import TrackingConfig
from onediff.model import attention
from onediff.parallel.topology import Topology
from onediff.runs.folder import RunFolder
from onediff.tracking import Tracker
from onediff.tracking.place import how_to_look, tracking_uri
from onediff.tracking.scrub import scrubbed

log = logging.getLogger(__name__)


def open_tracker(config: RunConfig, folder: RunFolder, topology: Topology, hosts: str) -> Any:
    """The tracker of this run; a resumed run continues its record."""
    tags = {
        "host": hosts,
        "world_size": topology.ranks.world,
        "data_parallel": topology.dp_size,
        "tensor_parallel": topology.tp_size,
        "context_parallel": topology.cp_size,
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


def conclude(folder: RunFolder, tracker: Any, state: str, reason: str | None) -> None:
    """Records in the run folder and the tracker how the run ended: `finished`, `stopped` or `failed`."""
    folder.write_status(**{**(folder.status() or {}), "state": state, "reason": reason})
    tracker.finish({"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[state])


def tell_end(folder: RunFolder, tracking: TrackingConfig, state: str, reason: str | None, processes: int) -> None:
    """Logs how the run ended, where its files are, and the command that resumes it or shows it."""
    if reason:
        log.error("%s: %s", state, reason)
    if state == "stopped" and "SLURM_JOB_ID" not in os.environ:
        log.info("resume with the same command and --resume, or: %s", how_to_go_on(folder.path, processes))
    log.info("%s are in %s", "the results" if state == "finished" else "the results so far", folder.path)
    if tracking.live:
        log.info("look at it with: %s", how_to_look(scrubbed(tracking_uri(folder.path, tracking))))


def how_to_go_on(run: Path, processes: int) -> str:
    """The command that resumes a stopped run on this machine."""
    several = f" --processes {processes}" if processes > 1 else ""
    return f"onediff train {shlex.quote(str(run))}{several} --resume"
