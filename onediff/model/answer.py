"""Generates text answers to prompt rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    """The answers of `answer_ids` as text, without the tokens that end them."""
    stops = {*ends, tokenizer.eos_token_id}
    found = answer_ids(model, tokenizer, rows, device, ends, **generation)
    return texts(tokenizer, found, stops)


def texts(tokenizer: Any, answers: Sequence[Sequence[int]], stops: Collection[int]) -> list[str]:
    """Decodes token ids without `stops`, which not every tokenizer treats as special tokens."""
    whole = [[token for token in answer if token not in stops] for answer in answers]
    return [text.strip() for text in tokenizer.batch_decode(whole, skip_special_tokens=True)]


def answer_ids(
    model: OneDiffModel,
    tokenizer: Any,
    rows: list[TokenRow],
    device: torch.device,
    ends: Sequence[int] = (),
    **generation: Any,
) -> list[list[int]]:
    """Generates answers to prompt rows as one left-padded batch, greedily unless `generation` says otherwise.

    An answer ends with the tokenizer's end-of-text token or one of `ends` (`Prompter.ends`), unless it was cut.
    """
    batch = collate(rows, pad_left=True).to(device)
    stops = list(dict.fromkeys((*ends, tokenizer.eos_token_id)))
    options = {"do_sample": False, "eos_token_id": stops, "pad_token_id": tokenizer.eos_token_id}
    made = model.generate(batch, **{**options, **generation})
    return [ids[: next((n for n, token in enumerate(ids, 1) if token in stops), None)] for ids in made.tolist()]
