"""Copies of a run's state in the memory of its nodes: where they are on a node, and how a rank asks the node's keeper.

    FOLDER/keeper                              socket of the keeper, `launcher.keeper`
    FOLDER/<generation>/rank-….safetensors     one file per rank, its own or one of the previous node

A generation is one state of all ranks. Standard library only.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from onediff.errors import UserError

KEEPER = "keeper"
ASK_SECONDS = 600.0
"""Longest wait for the keeper to have passed a file on."""


def mirror(folder: Path, generation: str, names: Sequence[str], keep: Collection[str]) -> None:
    """Has the files copied to the next node, in this order, where generations other than `keep` are removed first.

    Raises UserError when that fails. Where there is one node nothing is copied.
    """
    told = _ask(folder, {"do": "mirror", "generation": generation, "names": list(names), "keep": sorted(keep)})
    if told.get("error"):
        raise UserError(f"{folder}: {told['error']}")


def bring(path: Path) -> bool:
    """Whether the file FOLDER/GENERATION/NAME is here; it is fetched from another node of the run where it is not."""
    folder = path.parents[1]
    if path.is_file():
        return True
    if not (folder / KEEPER).exists():
        return False
    return bool(_ask(folder, {"do": "fetch", "generation": path.parent.name, "name": path.name}).get("found"))


def keep_only(folder: Path, generations: Collection[str]) -> None:
    """Removes all other generations from this node's memory."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in generations:
            shutil.rmtree(path, ignore_errors=True)


def _ask(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The keeper's answer. Raises UserError when it does not live."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(ASK_SECONDS)
        try:
            line.connect(str(folder / KEEPER))
            line.sendall(json.dumps(request).encode() + b"\n")
            with line.makefile("rb") as answers:
                answer: dict[str, Any] = json.loads(answers.readline())
                return answer
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: the keeper of this node's copies does not answer: {error}") from None
