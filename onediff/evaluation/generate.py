"""Captions for a held-out split: every pair answered exactly once, whatever the number of ranks and wherever one dies.

Each rank appends its answers to a file of its own. A rerun, with any number of ranks, reads all of these files first and
answers what is still open.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from onediff.data.heldout import HeldOut
from onediff.data.pictures import decode
from onediff.data.rows import Row
from onediff.data.sample import BadSample
from onediff.errors import UserError
from onediff.evaluation.captioner import Captioner


def caption_split(
    captioner: Captioner,
    heldout: HeldOut,
    folder: Path,
    *,
    rank: int,
    ranks: int,
    batch_size: int,
    see: Callable[[np.ndarray, np.ndarray], list[np.ndarray]] = lambda before, after: [before, after],
    label: str = "captions",
    **generation: Any,
) -> None:
    """Answers this rank's share of the pairs still open and appends them to `folder/<label>.rank<r>.jsonl`.

    `see` chooses what the model is shown of a pair. A pair whose pictures cannot be read gets an empty caption.
    """
    done = read_answers(folder, label)
    mine = [pair for pair in heldout.references if pair not in done][rank::ranks]
    # Prompts of a pair have one length, so batches need no sorting; answers do not depend on their neighbours.
    with (folder / f"{label}.rank{rank}.jsonl").open("a", encoding="utf-8") as out:
        for start in tqdm(
            range(0, len(mine), batch_size), desc=label, unit="batch", disable=None if rank == 0 else True
        ):
            answers = answered(captioner, heldout, mine[start : start + batch_size], see, **generation)
            for pair, caption in answers.items():
                out.write(json.dumps({"id": pair, "caption": caption}, ensure_ascii=False) + "\n")
            out.flush()


def answered(
    captioner: Captioner,
    heldout: HeldOut,
    pairs: list[str],
    see: Callable[[np.ndarray, np.ndarray], list[np.ndarray]],
    **generation: Any,
) -> dict[str, str]:
    """One caption for each of `pairs`, in one batch."""
    rows: dict[str, Row] = {}
    maker = captioner.maker
    for pair in pairs:
        try:
            sample = heldout.sample(pair)
            before, after = (
                decode(sample.pictures[role], maker.picture, maker.config.max_pixels) for role in ("before", "after")
            )
            rows[pair] = maker.prompt(see(before, after), sample.instruction)
        except BadSample as bad:
            heldout.unreadable.append(f"{pair}: {bad}")
    captions = captioner.answer(list(rows.values()), **generation) if rows else []
    return {**dict.fromkeys(pairs, ""), **dict(zip(rows, captions, strict=True))}


def read_answers(folder: Path, label: str) -> dict[str, str]:
    """The answers of all ranks so far, the first where a pair was answered twice; half a line at a file's end is open.

    Raises UserError for a line that is not an answer.
    """
    found: dict[str, str] = {}
    for file in sorted(folder.glob(f"{label}.rank*.jsonl")):
        text = file.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            # The rank was killed while it wrote: its next answers must not continue that line.
            text = text[: text.rfind("\n") + 1]
            file.write_text(text, encoding="utf-8")
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                record = json.loads(line)
                found.setdefault(str(record["id"]), str(record["caption"]))
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{file}: line {number} is not an answer; delete the file to caption again") from None
    return found
