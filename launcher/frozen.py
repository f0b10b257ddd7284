"""The code frozen with a run: how to start it wherever a process stands, and whether it is still what was frozen.

Standard library only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from launcher.record import read_json, write_json
from onediff.errors import UserError

STARTER = '''"""Runs a module of this folder, whatever the working directory holds: python FOLDER MODULE [ARGUMENT …]"""

import runpy
import sys

del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
'''


def module(run: Path, name: str) -> list[str]:
    """Words behind a Python that run a module of the frozen code. `-m` would look in the working directory first."""
    return [str(run / "launch" / "code"), name]


def add_starter(code: Path) -> None:
    """Makes a folder of code ready to be started by its path."""
    if not (code / "__main__.py").exists():
        (code / "__main__.py").write_text(STARTER, encoding="utf-8")


def note_digest(folder: Path) -> None:
    """Writes the digest of `folder`/code beside it."""
    write_json(folder / "code.json", {"sha256": digest(folder / "code")})


def check(folder: Path) -> None:
    """Raises UserError unless this process runs the code in `folder`/code, and that as it was frozen."""
    code, here = (folder / "code").resolve(), Path(__file__).resolve().parents[1]
    if here != code:
        raise UserError(
            f"{here}: this job would run the code there, and not what was frozen in {code}; submit it again"
        )
    noted = read_json(folder / "code.json")
    if noted and noted["sha256"] != digest(code):
        raise UserError(
            f"{code}: has been changed since it was frozen; go on with the code as it is installed: "
            f"onediff launch resume {folder.parent} --new-code"
        )


def digest(code: Path) -> str:
    """SHA-256 over the names and contents of all files but what Python compiled."""
    whole = hashlib.sha256()
    for path in sorted(code.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            part = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{path.relative_to(code).as_posix()} {part}\n".encode())
    return whole.hexdigest()
