"""Files that appear under their name only when they are whole, so that no reader ever sees half of one."""

from __future__ import annotations

import os
from pathlib import Path


def aside(path: Path) -> Path:
    """A name beside `path` for this process alone. Nodes that share a folder have the same process ids."""
    return path.with_name(f".tmp-{path.name}-{os.uname().nodename}-{os.getpid()}")


def write_whole(path: Path, content: str | bytes, durable: bool = False) -> None:
    """Writes a file aside and gives it its name. `durable` waits for the disk, so that it survives a power cut too."""
    temporary = aside(path)
    with temporary.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)
