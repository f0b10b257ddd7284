"""Splits the work on one data set over many tasks, possibly on different machines; each makes its share of the chunks."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Task `number` of `of`, counted from 0; it makes every `of`-th chunk."""

    number: int
    of: int

    def has(self, chunk: int) -> bool:
        """Whether this task makes the chunk."""
        return chunk % self.of == self.number


def add_share(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--share`."""
    text = "make only this share, such as 3/64 (from 0/64 to 63/64); the command without it then joins the shares"
    parser.add_argument("--share", type=share, metavar="N/TASKS", help=text)


def share(text: str) -> Share:
    """`3/64` as a share. Raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not N/TASKS with N from 0 to TASKS - 1, such as 3/64")
    return Share(int(match[1]), int(match[2]))
