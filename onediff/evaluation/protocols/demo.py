"""The demo's rendered scenes: all pairs of the held-out split, with every wording of a change as a reference of its own.

The renderer's vocabulary is small and fixed, so the grammar of the item scores can read the change type from a caption. The
share of captions with the right type is then a score that n-gram overlap cannot inflate. A caption that states several
changes has the type `several`; one that cannot be read counts as wrong.
"""

from __future__ import annotations

from onediff.evaluation.items.grammar import read
from onediff.evaluation.protocols.protocol import Protocol


def read_type(caption: str) -> str | None:
    """The change type that `caption` states, under the renderer's name; None if it cannot be read."""
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
