"""Composed pairs as samples of a data set."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.compose.config import ComposeConfig
from data_prep.compose.library import Library
from data_prep.compose.pair import compose_pair
from data_prep.synthetic import Maker
from onediff.data.sample import Sample


@dataclass(frozen=True)
class ComposedPairs(Maker):
    """Pairs of photographs with cut-outs."""

    config: ComposeConfig
    library: Library

    def __call__(self, index: int) -> Sample:
        pair = compose_pair(self.config, self.library, self.series, index)
        return Sample(
            id=f"composed-{self.split}-{index:08d}",
            source="composed",
            task="difference",
            split=self.split,
            captions=tuple(pair.captions),
            meta=pair.meta,
            images={"before": self.encoded(pair.before), "after": self.encoded(pair.after)},
        )
