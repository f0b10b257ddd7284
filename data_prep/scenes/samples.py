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
        pair = render_pair(self.config, self.series, index)
        return Sample(
            id=f"pair-{self.split}-{index:08d}",
            source="scenes",
            task="difference",
            split=self.split,
            captions=tuple(pair.captions),
            meta=pair.meta,
            images={"before": self.encoded(pair.before), "after": self.encoded(pair.after)},
        )


@dataclass(frozen=True)
class Singles(Maker):
    """Images of one scene each."""

    config: ScenesConfig

    def __call__(self, index: int) -> Sample:
        single = render_single(self.config, self.series, index)
        return Sample(
            id=f"single-{self.split}-{index:08d}",
            source="scenes",
            task="caption",
            split=self.split,
            captions=tuple(single.captions),
            meta=single.meta,
            images={"image": self.encoded(single.image)},
        )
