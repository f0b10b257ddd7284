"""The demo's rendered scenes: all pairs of the held-out split, every wording of a change a reference of its own.

The renderer's vocabulary is small and fixed, so the change type can be read out of a caption by the grammar of the item
scores: no n-gram overlap can flatter a score of how many captions tell the right one. A caption that tells several changes
has the type `several`; one that cannot be read counts as wrong.
"""

from __future__ import annotations

from onediff.evaluation.items.grammar import read
from onediff.evaluation.protocols.protocol import Protocol


def read_type(caption: str) -> str | None:
    """The change type that `caption` tells, in the renderer's words; None if it cannot be read."""
    return read(caption).type


PROTOCOL = Protocol(
    name="demo",
    title="Rendered scenes of the demo",
    source="onediff data render",
    split="test",
    pairs="every pair of the held-out split, pairs without a change included",
    read_type=read_type,
    checked="the renderer's own change lists",
)
