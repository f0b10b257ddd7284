"""Captions of a few held-out pairs during training, for people to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from onediff.config.data import DataConfig
from onediff.config.evaluation import EvaluationConfig
from onediff.data.heldout import HeldOut, first_with_pairs
from onediff.data.images import open_upright
from onediff.data.rows import Processor, collate
from onediff.data.sample import BadSample
from onediff.model.answer import answer
from onediff.model.attention_map import attention_maps, drawn_over
from onediff.runs.section import section
from onediff.training.engine import Engine

SIDE = 384
"""Most pixels of a shown image's longer side."""


class Samples:
    """The first few held-out pairs of the run's first data set that has any; read once."""

    def __init__(
        self, data: DataConfig, evaluation: EvaluationConfig, limit: int, processor: Processor, tokenizer: Any
    ) -> None:
        self.tokenizer, self.ends = tokenizer, processor.prompter.ends
        self.image = processor.image
        self.max_new_tokens = evaluation.max_new_tokens
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.references: list[str] = []
        self.rows = []
        heldout, task = _with_pairs(data, evaluation.split, limit)
        if heldout is not None:
            for pair, captions in heldout.references.items():
                try:
                    found = heldout.sample(pair)
                    images = [open_upright(found.images[role], data.max_pixels) for role in ("before", "after")]
                    row = processor.prompt(images, found.instruction, task)
                except BadSample:
                    continue  # the evaluation reports them
                for image in images:
                    image.thumbnail((SIDE, SIDE))
                self.pairs.append((np.asarray(images[0]), np.asarray(images[1])))
                self.references.append(captions[0])
                self.rows.append(row)

    @section("captions")
    def table(self, engine: Engine) -> list[dict[str, Any]]:
        """One row per pair: before and after `[height, width, 3]`, reference, prediction, and attention of the delta module.

        Collective under ZeRO-3: every rank answers the same prompts, so all run the same layers.
        """
        if not self.rows:
            return []
        engine.model.eval()
        predictions = answer(
            engine.model, self.tokenizer, self.rows, engine.device, self.ends, max_new_tokens=self.max_new_tokens
        )
        prompts = collate(self.rows, pad_left=True).to(engine.device)
        maps = attention_maps(engine.model, prompts).float().cpu().numpy()
        engine.model.train()
        table = []
        shown = zip(self.pairs, self.references, predictions, maps, strict=True)
        for (before, after), reference, prediction, looked in shown:
            table.append(
                {
                    "before": before,
                    "after": after,
                    "reference": reference,
                    "prediction": prediction,
                    "attention on before": drawn_over(before, looked[0], self.image),
                    "attention on after": drawn_over(after, looked[1], self.image),
                }
            )
        return table


def _with_pairs(data: DataConfig, split: str, limit: int) -> tuple[HeldOut | None, str]:
    """The first `limit` pairs of `split` in the first of `data.sets` that has pairs there, and their task."""
    sets = {Path(one.path): one for one in data.sets.values()} if limit else {}
    folder = first_with_pairs(sets, split)
    if folder is None:
        return None, "pair"
    heldout = HeldOut.open(folder / split, limit=limit)
    return heldout, sets[folder].task or "pair"
