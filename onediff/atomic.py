"""Atomic writes, so that readers never see a partial file or folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def aside(path: Path) -> Path:
    """A temporary name next to `path`, unique to this process and node, because nodes may share a folder."""
    return path.with_name(f".tmp-{path.name}-{os.uname().nodename}-{os.getpid()}")


def write_whole(path: Path, content: str | bytes, durable: bool = False) -> None:
    """Writes a temporary file and renames it. With `durable`, waits for the disk, so that it survives a power cut."""
    temporary = aside(path)
    with temporary.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)


def clear_dead(path: Path) -> None:
    """Removes the folders `aside(path)` of processes of this node that were killed."""
    mine = aside(path).name.removesuffix(str(os.getpid()))
    for left in path.parent.glob(".tmp-*"):
        if left.name.startswith(mine) and not _lives(left.name.removeprefix(mine)):
            _delete(left)


def replace_folder(finished: Path, final: Path) -> None:
    """Renames the folder `finished` to `final`. The old folder there is deleted only afterwards.

    A folder cannot be replaced in one rename. `put_back` cleans up after a kill between the two.
    """
    old = _old(final)
    if final.exists():
        _delete(old)
        os.rename(final, old)
    os.rename(finished, final)
    _delete(old)


def put_back(final: Path) -> None:
    """Gives the old folder its name again after a kill in `replace_folder`, or removes it if the new one has the name."""
    if final.exists():
        _delete(_old(final))
    elif _old(final).exists():
        os.rename(_old(final), final)


def _old(final: Path) -> Path:
    return final.with_name(f".tmp-old-{final.name}")


def _delete(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _lives(process: str) -> bool:
    """Whether a process of this node has this number; True for what is no number."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):
        return True
    return True
