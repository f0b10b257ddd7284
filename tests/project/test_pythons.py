"""What needs no torch works on each Python that the README names and this machine has; others are skipped by name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
CACHE = Path.home() / ".cache" / "onediff-tests"
OTHERS = [minor for minor in (10, 11, 12, 13) if minor != sys.version_info.minor]
NEEDED = ("pydantic", "pyyaml", "numpy", "pillow", "simplejpeg", "tqdm", "psutil", "pyarrow", "pytest", "hypothesis")
"""Requirements from setup.py that suffice for the launcher, the configuration and the data formats."""
TRIED = ("config/test_section.py", "config/test_config_reference.py", "config/test_renamed.py", "data/test_manifest.py")
TRIED += ("launcher/test_launch_rules.py", "data_prep/test_readers.py")


def interpreter(minor: int) -> str | None:
    """A `python3.<minor>` that runs, from PATH or pyenv; None if there is none."""
    places = [shutil.which(f"python3.{minor}"), *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")]
    for found in filter(None, places):
        if subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return str(found)
    return None


def requirements() -> list[str]:
    """NEEDED with the versions that setup.py asks for."""
    lines = dict(re.findall(r'"(([\w-]+)[~>=][^"]*)"', (HOUSE / "setup.py").read_text()))
    return [line for line, name in lines.items() if name in NEEDED]


@pytest.mark.parametrize("minor", OTHERS)
def test_what_needs_no_torch_works_on(minor):
    python = interpreter(minor)
    if python is None:
        pytest.skip(f"Python 3.{minor} was not tried: not installed on this machine")
    place = CACHE / f"python-3.{minor}"  # kept, because making it takes longer than the tests
    wanted = sorted(requirements())
    assert len({re.split("[~>=]", line)[0] for line in wanted}) == len(NEEDED)
    if not (place / "made").exists() or (place / "made").read_text() != "\n".join(wanted):
        subprocess.run([python, "-m", "venv", "--clear", str(place)], check=True, timeout=300)
        words = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted]
        subprocess.run(words, check=True, timeout=600)
        (place / "made").write_text("\n".join(wanted))
    command = [str(place / "bin" / "python"), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in TRIED)],
        cwd=HOUSE,
        env={**os.environ, "PYTHONPATH": str(HOUSE), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
