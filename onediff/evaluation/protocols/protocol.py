"""What a protocol fixes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from onediff.errors import UserError


@dataclass(frozen=True)
class Published:
    """A number that somebody printed for this benchmark, beside which ours is shown. Fractions (CIDEr 0.566, not 56.6)."""

    model: str
    scores: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is scored; the module that holds it says where each rule comes from."""

    name: str
    """As `--protocol` has it."""
    title: str
    """The benchmark's own name."""
    source: str
    """Paper and data, with addresses."""
    split: str
    """The split that published numbers are for."""
    pairs: str
    """Which pairs count, in words."""
    references: Literal["all", "joined"] = "all"
    """`all`: each sentence of a pair is a reference of its own; `joined`: they are one text, in the order of the file, with
    ". " between them."""
    longest: int | None = None
    """Words of a joined text that are kept; None is all of them."""
    empty_references: Literal["keep", "drop", "refuse"] = "refuse"
    """`keep`: an empty sentence is a reference; `drop`: it is left out, and a pair that has no other does not count."""
    repeated_ids: str = "sentences of one id are references of one pair, wherever they stand in the file"
    """How an id that comes several times is read, in words."""
    tokenisation: str = "PTBTokenizer of Stanford CoreNLP 3.4.1 in lower case, punctuation removed (pycocoevalcap)"
    """How captions are cut into tokens."""
    task: str = "pair"
    """The instruction key (`data.sets.NAME.task`) that this benchmark's training pairs have in a generalist's data."""
    instruction: str | None = None
    """What a generalist model is asked, as `configs/data/diffcap_mix.yaml` has it trained; None is the data set's own."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Change types that are reported together, such as `semantic`; each group is scored as a corpus of its own."""
    read_type: Callable[[str], str | None] | None = None
    """Reads the change type out of a caption; None if captions are free text."""
    published: Sequence[Published] = ()
    """Numbers of others under these rules."""
    checked: str | None = None
    """What these rules were checked against, in words; None if no published file was found that could prove them."""

    @property
    def provenance(self) -> str:
        """`checked`, or that nothing proves the rules."""
        return (
            self.checked or "not proven: no published predictions or references were found to check these rules against"
        )

    def treated(self, references: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """`references` as they count: empty sentences treated, sentences joined where the protocol says so."""
        counted: dict[str, list[str]] = {}
        for pair, captions in references.items():
            blank = [caption for caption in captions if not caption.strip()]
            if not captions or (blank and self.empty_references == "refuse"):
                raise UserError(
                    f"references: an empty caption for id {pair!r}; protocol {self.name} has none: fix the file"
                )
            kept = list(captions) if self.empty_references == "keep" else [c for c in captions if c.strip()]
            if kept:
                counted[pair] = [self._joined(kept)] if self.references == "joined" else kept
        return counted

    def _joined(self, captions: Sequence[str]) -> str:
        text = ". ".join(caption for caption in captions if caption.strip())
        return " ".join(text.split()[: self.longest]) if self.longest is not None else text


def digest(references: Mapping[str, Sequence[str]]) -> str:
    """A short fingerprint of what was scored against, independent of the order of pairs."""
    text = json.dumps(sorted((pair, sorted(captions)) for pair, captions in references.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
