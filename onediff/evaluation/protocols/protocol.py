"""What a protocol specifies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from onediff.errors import UserError


@dataclass(frozen=True)
class Published:
    """A published score for this benchmark, shown beside ours. Fractions (CIDEr 0.566, not 56.6)."""

    model: str
    scores: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is scored; its module says where each rule comes from."""

    name: str
    """Its name in `--protocol`."""
    title: str
    """The benchmark's own name."""
    source: str
    """Paper and data, with addresses."""
    split: str
    """The split of published scores."""
    pairs: str
    """Describes the pairs that count."""
    references: Literal["all", "joined"] = "all"
    """`all`: each sentence of a pair is a reference of its own; `joined`: they are one text, in the order of the file, with
    ". " between them."""
    longest: int | None = None
    """How many words of a joined text are kept; None for all of them."""
    empty_references: Literal["keep", "drop", "refuse"] = "refuse"
    """`keep`: an empty sentence is a reference; `drop`: it is left out, and a pair with no other does not count."""
    repeated_ids: str = "sentences of one id are references of one pair, wherever they are in the file"
    """Describes how a repeated id is read."""
    tokenisation: str = "PTBTokenizer of Stanford CoreNLP 3.4.1 in lower case, punctuation removed (pycocoevalcap)"
    """Describes how captions are split into tokens."""
    task: str = "pair"
    """The instruction key (`data.sets.NAME.task`) of this benchmark's training pairs in a generalist's data."""
    instruction: str | None = None
    """The instruction for a generalist model, as in `configs/data/diffcap_mix.yaml`; None for the data set's own."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Change types that are reported together, such as `semantic`; each group is scored as a corpus of its own."""
    read_type: Callable[[str], str | None] | None = None
    """Reads the change type from a caption; None if captions are free text."""
    published: Sequence[Published] = ()
    """Published scores under these rules."""
    checked: str | None = None
    """Describes what these rules were checked against; None if no published file was found that could prove them."""

    @property
    def provenance(self) -> str:
        """`checked`, or that nothing proves the rules."""
        return (
            self.checked or "not proven: no published predictions or references were found to check these rules against"
        )

    def treated(self, references: Mapping[str, Sequence[str]], where: str = "references") -> dict[str, list[str]]:
        """`references` with empty sentences treated, and sentences joined if the protocol says so.

        Raises UserError that names `where` and the pair for an empty sentence if the protocol has none.
        """
        counted: dict[str, list[str]] = {}
        for pair, captions in references.items():
            blank = [caption for caption in captions if not caption.strip()]
            if not captions or (blank and self.empty_references == "refuse"):
                raise UserError(
                    f"{where}: an empty caption for id {pair!r}; protocol {self.name} has none: fix the file"
                )
            kept = list(captions) if self.empty_references == "keep" else [c for c in captions if c.strip()]
            if kept:
                counted[pair] = [self._joined(kept)] if self.references == "joined" else kept
        return counted

    def _joined(self, captions: Sequence[str]) -> str:
        text = ". ".join(caption for caption in captions if caption.strip())
        return " ".join(text.split()[: self.longest]) if self.longest is not None else text


def digest(references: Mapping[str, Sequence[str]]) -> str:
    """A short fingerprint of the references, independent of the order of pairs."""
    text = json.dumps(sorted((pair, sorted(captions)) for pair, captions in references.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
