"""Atomic writes, so that readers never see a partial file."""

from __future__ import annotations

import os
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
