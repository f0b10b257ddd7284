"""Answers in words to prompt rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from onediff.data.rows import TokenRow, collate
from onediff.model.onediff import OneDiffModel


def answer(
    model: OneDiffModel,
    tokenizer: Any,
    rows: list[TokenRow],
    device: torch.device,
    ends: Sequence[int] = (),
    **generation: Any,
) -> list[str]:
    """The model's answers to prompt rows, computed as one left-padded batch; greedy unless `generation` says otherwise.

    An answer ends with the tokenizer's end of text, or with one of `ends` (`Prompter.ends`).
    """
    batch = collate(rows, pad_left=True).to(device)
    stops = list(dict.fromkeys((*ends, tokenizer.eos_token_id)))
    options = {"do_sample": False, "eos_token_id": stops, "pad_token_id": tokenizer.eos_token_id}
    made = model.generate(batch, **{**options, **generation})
    # Not every tokenizer counts the end of a turn among the special tokens that decoding drops.
    whole = [ids[: next((n for n, token in enumerate(ids) if token in stops), None)] for ids in made.tolist()]
    return [text.strip() for text in tokenizer.batch_decode(whole, skip_special_tokens=True)]
