"""Checks that outputs can be written before work begins, and turns write errors into one clear line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onediff.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns an OSError (full disk, no permission, …) into a UserError."""
    try:
        yield
    except OSError as error:
        # The user knows `target`, not the temporary file in it.
        advice = "free some space and run the command again" if error.errno in FULL else "choose another location"
        raise UserError(f"{target}: cannot be written ({error.strerror or error}); {advice}") from error


def check_output(path: Path | None, option: str) -> None:
    """Creates the folder of the file that `option` names. Raises UserError if no file can be written there."""
    if path is None or (path.exists() and not path.is_dir() and not path.is_file()):
        return  # a pipe or a terminal
    if path.is_dir():
        raise UserError(f"{path}: is a folder ({option}); name a file")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        with path.open("ab"):
            pass
        if not existed:
            path.unlink(missing_ok=True)  # another rank may have looked, too


def check_folder(path: Path | None) -> None:
    """Creates a folder for output. Raises UserError if that fails."""
    if path is not None:
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file. Raises UserError."""
    with writing(path):
        path.write_text(text, encoding="utf-8")
