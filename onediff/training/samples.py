"""Captions of a few held-out pairs while training, for people to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from onediff.config.run import RunConfig
from onediff.data.heldout import HeldOut, first_with_pairs
from onediff.data.images import open_upright
from onediff.data.rows import Processor, collate
from onediff.data.sample import BadSample
from onediff.model.answer import answer
from onediff.model.heatmap import drawn_over, heat_maps
from onediff.runs.section import section
from onediff.training.engine import Engine

SIDE = 384
"""Most pixels of a shown image's longer side."""


class Samples:
    """The first few pairs of the held-out split of the run's first data set that has any; read once."""

    def __init__(self, config: RunConfig, processor: Processor, tokenizer: Any) -> None:
        self.tokenizer, self.ends = tokenizer, processor.prompter.ends
        self.image = processor.image
        self.max_new_tokens = config.evaluation.max_new_tokens
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.references: list[str] = []
        self.rows = []
        heldout, task = _with_pairs(config)
        if heldout is not None:
            for pair, captions in heldout.references.items():
                try:
                    found = heldout.sample(pair)
                    images = [open_upright(found.images[role], config.data.max_pixels) for role in ("before", "after")]
                    row = processor.prompt(images, found.instruction, task)
                except BadSample:
                    continue  # evaluation lists it
                for image in images:
                    image.thumbnail((SIDE, SIDE))
                self.pairs.append((np.asarray(images[0]), np.asarray(images[1])))
                self.references.append(captions[0])
                self.rows.append(row)

    @section("captions")
    def table(self, engine: Engine) -> list[dict[str, Any]]:
        """One row a pair: before and after `[height, width, 3]`, reference, prediction, and where the delta module looks.

        Collective under ZeRO-3: every rank answers the same prompts, so all of them run the same layers.
        """
        if not self.rows:
            return []
        engine.model.eval()
        predictions = answer(
            engine.model, self.tokenizer, self.rows, engine.device, self.ends, max_new_tokens=self.max_new_tokens
        )
        prompts = collate(self.rows, pad_left=True).to(engine.device)
        maps = heat_maps(engine.model, prompts).float().cpu().numpy()
        engine.model.train()
        table = []
        shown = zip(self.pairs, self.references, predictions, maps, strict=True)
        for (before, after), reference, prediction, heats in shown:
            table.append(
                {
                    "before": before,
                    "after": after,
                    "reference": reference,
                    "prediction": prediction,
                    "attention on before": drawn_over(before, heats[0], self.image),
                    "attention on after": drawn_over(after, heats[1], self.image),
                }
            )
        return table


def _with_pairs(config: RunConfig) -> tuple[HeldOut | None, str]:
    """The held-out split of the first data set, in the order of `data.sets`, that has pairs in it; and the pairs' task."""
    sets = {Path(one.path): one for one in config.data.sets.values()} if config.training.sample_captions else {}
    folder = first_with_pairs(sets, config.evaluation.split)
    if folder is None:
        return None, "pair"
    heldout = HeldOut.open(folder / config.evaluation.split, limit=config.training.sample_captions)
    return heldout, sets[folder].task or "pair"
