"""Describes the machine of a measurement, for the files in `results/`."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


def machine(*packages: str) -> dict[str, Any]:
    """Commit (`-dirty` if files differ from it), processor, cores, load, and the versions of Python and `packages`."""
    here = Path(__file__).parent
    described = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    commit = subprocess.run(described, cwd=here, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or "unknown",
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }


def processor() -> str:
    """The processor's name, if the system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
