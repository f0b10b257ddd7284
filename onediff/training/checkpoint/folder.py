"""The folder of a phase's checkpoints: names, the pointers `latest` and `best`, and which ones to keep."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from onediff.atomic import write_whole
from onediff.errors import UserError
from onediff.training.checkpoint.manifest import FILE

LATEST = "latest"
BEST = "best"
# Prefix of a checkpoint that is being replaced; it is valid until its successor has its name.
_NAME = re.compile(r"(?:\.tmp-old-)?step-(\d{8,})")
_ANY_NAME = re.compile(r"(?:\.tmp-(?:old-)?)?step-\d{8,}")


def name_of(step: int) -> str:
    """`step-00000100`."""
    return f"step-{step:08d}"


def aside(folder: Path, step: int) -> Path:
    """The folder that a checkpoint is written to before it gets its final name."""
    return folder / f".tmp-{name_of(step)}"


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints below `folder`, oldest first."""
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    found = [path for path in found if not (path.name.startswith(".") and (folder / name_of(step_of(path))).exists())]
    return sorted((path for path in found if (path / FILE).is_file()), key=step_of)


def checkpoints_below(path: Path) -> list[Path]:
    """`path` itself if it is a checkpoint, else those in it or in all phases of a run. Raises UserError if there is none."""
    if (path / FILE).is_file() or _NAME.fullmatch(path.name):
        return [path]
    phases = sorted((path / "checkpoints").glob("phase-*"), key=lambda phase: phase.stat().st_mtime)
    found = [checkpoint for folder in (path, *phases) for checkpoint in checkpoints(folder)]
    if not found:
        raise UserError(f"{path}: no checkpoint here; name a run, a folder of checkpoints, or one checkpoint")
    return found


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from: the one that `latest` names, else the newest finished one, else None."""
    folder = Path(folder)
    pointer = folder / LATEST
    if pointer.is_file():
        path = folder / pointer.read_text().strip()
        if _NAME.fullmatch(path.name) and (path / FILE).is_file():
            return path
    found = checkpoints(folder)
    return found[-1] if found else None


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `best` names, or None."""
    pointer = Path(folder) / BEST
    path = folder / pointer.read_text().strip() if pointer.is_file() else None
    return path if path is not None and (path / FILE).is_file() else None


def point(folder: Path, name: str, step: int | None) -> None:
    """Points `name` to the checkpoint of `step`, or to nothing."""
    if step is None:
        (folder / name).unlink(missing_ok=True)
        return
    write_whole(folder / name, name_of(step) + "\n")
    flush(folder)


def commit(folder: Path, step: int) -> Path:
    """Renames the finished checkpoint to its final name, then points `latest` to it."""
    final, old = folder / name_of(step), folder / f".tmp-old-{name_of(step)}"
    if final.exists():
        # A run that rolled back has reached this step again. A folder cannot be replaced in one rename; between the two
        # renames, an earlier checkpoint, or this one under its other name, is there to resume from.
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    os.rename(aside(folder, step), final)
    flush(folder)
    point(folder, LATEST, step)
    shutil.rmtree(old, ignore_errors=True)
    return final


def prune(folder: Path, keep_last: int | None, keep_every: int | None) -> list[Path]:
    """Retires all but the newest `keep_last` checkpoints and those at multiples of `keep_every` steps; returns the retired
    ones, and what killed processes left unfinished, for `remove`.

    The checkpoints that `latest` and `best` name always stay. `keep_last=None` keeps everything. Call while no checkpoint is
    being written.
    """
    if keep_last is None:
        return []
    finished = checkpoints(folder)
    kept = {*finished[-max(keep_last, 1) :], latest_checkpoint(folder), best_checkpoint(folder)}
    gone = [path for path in finished if path not in kept]
    gone = [path for path in gone if not (keep_every and step_of(path) % keep_every == 0)]
    for path in gone:
        # The manifest goes first, so that an interrupted removal leaves nothing that looks finished.
        (path / FILE).unlink(missing_ok=True)
    others = {path for path in folder.iterdir() if _ANY_NAME.fullmatch(path.name)}
    return [*gone, *sorted(others - {*finished})]


def remove(paths: Sequence[Path]) -> None:
    """Removes checkpoint folders, which may hold the files of thousands of ranks."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def flush(folder: Path) -> None:
    """Makes renames inside `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
