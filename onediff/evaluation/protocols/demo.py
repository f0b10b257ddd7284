"""The demo's rendered scenes: all pairs of the held-out split, every wording of a change a reference of its own.

The renderer's vocabulary is small and fixed, so the kind of change can be read out of a caption by rule. That gives a
score which no n-gram overlap can flatter: in how many pairs the caption tells the right kind of change. A caption that
tells several changes has the type `several`; one in which the rule finds none counts as wrong.
"""

from __future__ import annotations

import re

from onediff.evaluation.protocols.protocol import Protocol

NO_CHANGE = re.compile(r"nothing has changed|no (?:difference|change)\b|the same scene|as it was before")
SWAP = re.compile(r"(?:swapped|changed) places|vice versa|were exchanged")
# One alternative for each type; matches do not overlap, so a clause counts once. Order matters where two begin alike:
# "there is now a cube" is not "is now blue", "become a cube" and "become larger" are not "become blue".
CLAUSE = re.compile(
    r"(?P<add>has appeared|there is now an?\b|has been added|\bis new\b|somebody has put)"
    r"|(?P<replace>has been replaced by|instead of|has become an?\b|taken the place of|stands where)"
    r"|(?P<move>has moved|was moved|went from|is no longer (?:at|in|on) the [a-z ]+ but|is now (?:at|in|on)\b)"
    r"|(?P<remove>has been removed|is gone|has disappeared|is missing|is no longer)"
    r"|(?P<resize>(?:has become|is now|is|got) (?:larger|smaller)|has (?:grown|shrunk))"
    r"|(?P<recolour>has turned|changed its colour|was painted|has become|is now)"
)


def read_type(caption: str) -> str | None:
    """The change type that `caption` tells, in the renderer's words; None where the rule finds none."""
    text = " ".join(caption.lower().split())
    if SWAP.search(text):
        return "swap"
    types = [match.lastgroup for match in CLAUSE.finditer(text)]
    if types:
        return types[0] if len(types) == 1 else "several"
    return "none" if NO_CHANGE.search(text) else None


PROTOCOL = Protocol(
    name="demo",
    title="Rendered scenes of the demo",
    source="onediff data render",
    split="test",
    pairs="every pair of the held-out split, pairs without a change included",
    read_type=read_type,
)
