"""Copies of a run's state in the memory of its nodes: their layout on a node, and requests to the node's keeper.

    FOLDER/keeper                              socket of the keeper, `launcher.keeper`
    FOLDER/<generation>/rank-….safetensors     one file per rank of this node, and per rank of the previous node

A generation is the state of all ranks at one step. Uses only the standard library.
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
"""Longest wait for the keeper to transfer a file."""


def mirror(folder: Path, generation: str, names: Sequence[str], keep: Collection[str]) -> None:
    """Copies files to the next node, in this order; that node first removes generations other than `keep`.

    Does nothing if there is only one node. Raises UserError if copying fails.
    """
    answer = _ask(folder, {"do": "mirror", "generation": generation, "names": list(names), "keep": sorted(keep)})
    if answer.get("error"):
        raise UserError(f"{folder}: {answer['error']}")


def bring(path: Path) -> bool:
    """Fetches FOLDER/GENERATION/NAME from another node of the run if it is missing; returns whether it is here now."""
    folder = path.parents[1]
    if path.is_file():
        return True
    if not (folder / KEEPER).exists():
        return False
    return bool(_ask(folder, {"do": "fetch", "generation": path.parent.name, "name": path.name}).get("found"))


def keep_only(folder: Path, generations: Collection[str]) -> None:
    """Removes all generations except `generations` from this node's memory."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in generations:
            shutil.rmtree(path, ignore_errors=True)


def _ask(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The keeper's answer. Raises UserError if the keeper does not respond."""
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
