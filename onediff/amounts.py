"""Counts and amounts on a command line: parsed, and refused if they are too small, before the command does anything."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least `least`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value}: must be at least {least}")
        return value

    return integer


def amount(text: str) -> float:
    """An argparse type: a number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 0")
    return value


def positive(text: str) -> float:
    """An argparse type: a number above 0."""
    value = amount(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text}: must be more than 0")
    return value


def port(text: str) -> int:
    """An argparse type: a TCP port; 0 is any free one."""
    value = int(text)
    if not 0 <= value < 1 << 16:
        raise argparse.ArgumentTypeError(f"{value}: must be from 0 to 65535")
    return value
