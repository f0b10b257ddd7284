"""Answers in words to prompt rows."""

from __future__ import annotations

from typing import Any

import torch

from onediff.data.rows import Row, collate
from onediff.model.onediff import OneDiffModel


def answer(model: OneDiffModel, tokenizer: Any, rows: list[Row], device: torch.device, **generation: Any) -> list[str]:
    """The model's answers to prompt rows, as one left-padded batch; greedy unless `generation` says otherwise."""
    batch = collate(rows, pad_left=True).to(device)
    options = {"do_sample": False, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    made = model.generate(batch, **{**options, **generation})
    return [text.strip() for text in tokenizer.batch_decode(made, skip_special_tokens=True)]
