"""Rendered scenes as samples of a data set."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.scenes.config import ScenesConfig
from data_prep.scenes.render import render_pair, render_single
from data_prep.synthetic import Maker
from onediff.data.sample import Sample


@dataclass(frozen=True)
class PairMaker(Maker):
    """Pairs with a change."""

    config: ScenesConfig

    def __call__(self, index: int) -> Sample:
        made = render_pair(self.config, self.series, index)
        return self.pair(index, "scenes", "pair", made)


@dataclass(frozen=True)
class Singles(Maker):
    """Single images."""

    config: ScenesConfig

    def __call__(self, index: int) -> Sample:
        made = render_single(self.config, self.series, index)
        return self.single(index, "scenes", "single", made)
