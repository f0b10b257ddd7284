"""Paths in the checkout."""

from pathlib import Path

HOUSE = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent
