"""The code frozen with a run: how to start it from any working directory, and whether it is unchanged.

Standard library only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from launcher.record import read_json, write_json
from onediff.errors import UserError

STARTER = '''"""Run a module of this folder, whatever the working directory contains: python FOLDER MODULE [ARGUMENT …]"""

import runpy
import sys

del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
'''


def module(run: Path, name: str) -> list[str]:
    """Python arguments that run a module of the frozen code. `-m` would search the working directory first."""
    return [str(run / "launch" / "code"), name]


def add_starter(code: Path) -> None:
    """Make a folder of code runnable by its path."""
    if not (code / "__main__.py").exists():
        (code / "__main__.py").write_text(STARTER, encoding="utf-8")


def note_digest(folder: Path) -> None:
    """Write the digest of `folder`/code next to it."""
    write_json(folder / "code.json", {"sha256": digest(folder / "code")})


def check(folder: Path) -> None:
    """Raise UserError unless this process runs the code in `folder`/code, unchanged since it was frozen."""
    code, here = (folder / "code").resolve(), Path(__file__).resolve().parents[1]
    if here != code:
        raise UserError(f"{here}: this job would run that code instead of the code frozen in {code}; submit it again")
    noted = read_json(folder / "code.json")
    if noted and noted["sha256"] != digest(code):
        raise UserError(
            f"{code}: changed since it was frozen; to continue with the installed code: "
            f"onediff launch resume {folder.parent} --new-code"
        )


def digest(code: Path) -> str:
    """SHA-256 over the names and contents of all files except compiled Python."""
    whole = hashlib.sha256()
    for path in sorted(code.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            part = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{path.relative_to(code).as_posix()} {part}\n".encode())
    return whole.hexdigest()
