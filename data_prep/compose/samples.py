"""Composed pairs and single images as samples of a data set."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.compose.config import ComposeConfig
from data_prep.compose.library import Library
from data_prep.compose.pair import compose_pair, compose_single
from data_prep.synthetic import Maker
from onediff.data.sample import Sample


@dataclass(frozen=True)
class ComposedPairs(Maker):
    """Pairs of photographs with cut-outs."""

    config: ComposeConfig
    library: Library

    def __call__(self, index: int) -> Sample:
        made = compose_pair(self.config, self.library, self.series, index)
        return self.pair(index, "composed", "composed", made)


@dataclass(frozen=True)
class ComposedSingles(Maker):
    """Single photographs with cut-outs."""

    config: ComposeConfig
    library: Library

    def __call__(self, index: int) -> Sample:
        made = compose_single(self.config, self.library, self.series, index)
        return self.single(index, "composed", "composed-single", made)
