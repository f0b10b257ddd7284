"""The folder of a run, with everything needed for resuming, following and reporting."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from onediff.atomic import write_whole
from onediff.config.model import SAVED_MODEL_FILE
from onediff.errors import UserError


class RunFolder:
    """`config.yaml`, `status.json`, `phase-<name>/`, `checkpoints/phase-<name>/`, `tokenizer/`, `logs/` below one path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> Path:
        """The complete configuration."""
        return self.path / "config.yaml"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer trained by this run, if any."""
        return self.path / "tokenizer"

    @property
    def logs(self) -> Path:
        """Logs: one file per rank and start."""
        return self.path / "logs"

    def phase(self, name: str) -> Path:
        """The folder of a phase's files other than checkpoints."""
        return self.path / f"phase-{name}"

    def checkpoints(self, phase: str) -> Path:
        """The checkpoints of a phase."""
        return self.path / "checkpoints" / f"phase-{phase}"

    def finished(self, phase: str) -> dict[str, Any] | None:
        """The last metrics of a finished phase, or None."""
        marker = self.phase(phase) / "finished.json"
        return json.loads(marker.read_text()) if marker.is_file() else None

    def finish(self, phase: str, metrics: dict[str, Any]) -> None:
        """Marks a phase as finished, so that it is not repeated."""
        self.phase(phase).mkdir(parents=True, exist_ok=True)
        write_json(self.phase(phase) / "finished.json", metrics)

    def write_status(self, **fields: Any) -> None:
        """Replaces `status.json`, which followers of the run poll."""
        write_json(self.path / "status.json", {**fields, "updated": time.time()})

    def status(self) -> dict[str, Any] | None:
        """The last status, or None if there is none yet."""
        file = self.path / "status.json"
        return json.loads(file.read_text()) if file.is_file() else None


def require_run(path: Path) -> RunFolder:
    """The run in `path`. Raises UserError unless it is a run with a checkpoint. Needs no torch, so it is fast."""
    folder = RunFolder(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    if not folder.config.is_file():
        raise UserError(f"{path}: not a run (no config.yaml)")
    if not any(path.glob("checkpoints/phase-*/step-*")):
        raise UserError(f"{path}: this run has no checkpoint yet; train it with `onediff train`")
    return folder


def require_model(path: Path) -> None:
    """Raises UserError unless `path` is a saved model, or a run with a checkpoint. Needs no torch."""
    if (path / SAVED_MODEL_FILE).is_file():
        return
    if path.is_dir() and not RunFolder(path).config.is_file():
        raise UserError(f"{path}: neither a run (config.yaml) nor a saved model ({SAVED_MODEL_FILE})")
    require_run(path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON to a file atomically."""
    write_whole(path, json.dumps(value, indent=1))
