"""Captions for a held-out split: every pair is answered exactly once, for any number of ranks and across restarts.

The pairs are cut into batches independently of the number of ranks, and ranks take whole batches. A pair therefore always
has the same neighbours and gets the same arithmetic, to the last bit. A rerun, with any number of ranks, reads the answers
of all earlier ranks first and computes the batches in which a pair is still open.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from onediff.data.heldout import HeldOut
from onediff.data.images import open_upright
from onediff.data.rows import Processor, TokenRow
from onediff.data.sample import BadSample
from onediff.evaluation.answers import Answer, AnswerFile, read_answers
from onediff.evaluation.attention_map import packed
from onediff.parallel.agreement import from_rank_zero, gathered, raise_on_all_ranks
from onediff.parallel.topology import Topology
from onediff.progress import progress
from onediff.runs.section import beat

See = Callable[[Image.Image, Image.Image], list[Image.Image]]


def both(before: Image.Image, after: Image.Image) -> list[Image.Image]:
    """The pair as it is."""
    return [before, after]


@dataclass(frozen=True)
class CaptioningJob:
    """What to answer, how, and where the answers go."""

    heldout: HeldOut
    processor: Processor
    folder: Path
    by: str
    """Fingerprint of what the answers depend on (`answers.fingerprint`)."""
    batch_size: int
    answer: Callable[[list[TokenRow]], list[str]]
    """Prompt rows to captions, in one batch."""
    attention: Callable[[list[TokenRow]], np.ndarray] | None = None
    """Prompt rows to attention maps `[rows, 2, side, side]`."""
    instruction: str | None = None
    """Asked of every pair instead of its own."""
    usual: str | None = None
    """Asked of pairs that have no instruction of their own."""
    seed: int = 0
    """Seed for sampling. Each batch has its own stream, whichever rank computes it."""
    in_step: bool = False
    """Whether all tensor groups must compute the same number of batches, as under ZeRO-3."""
    see: See = both
    """Chooses what the model is shown of a pair."""
    label: str = "captions"
    check: Callable[[], None] = lambda: None
    """Called by all ranks before each batch; if it raises, on every rank, captioning ends."""


def batches(heldout: HeldOut, size: int) -> list[list[str]]:
    """The pairs in batches of `size`, with prompts of similar length together to reduce padding."""
    pairs = sorted(heldout.references, key=lambda pair: len(heldout.instructions.get(pair, "")))
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def caption_split(job: CaptioningJob, topology: Topology) -> None:
    """Answers this rank's share of what is open and appends it to `<label>.rank<r>.jsonl`. Collective.

    When it returns, all ranks have written and `read_answers` finds every pair. Pairs whose images could not be read
    have an empty caption and are listed in `heldout.unreadable`, on every rank. Raises UserError on every rank.
    """
    cut = batches(job.heldout, job.batch_size)
    with raise_on_all_ranks():
        done = standing(job)
    # A fast rank may already be writing while a slow one reads, so rank 0's view counts.
    open_batches: list[int] = from_rank_zero([n for n, pairs in enumerate(cut) if not done.keys() >= set(pairs)])  # type: ignore[assignment]
    mine = [(number, True) for number in open_batches[topology.copy :: topology.copies]]
    if job.in_step:
        # A rank whose share is one batch short computes a batch that it does not keep.
        mine += [(0, False)] * (-(-len(open_batches) // topology.copies) - len(mine))
    # Rank 0's progress through its share stands for all ranks.
    total = sum(len(cut[number]) for number in open_batches)
    bar = progress(total, job.label, "pairs", shown=topology.ranks.rank == 0 and total > 0, leave=True)
    unreadable = {pair: answer.fault for pair, answer in done.items() if answer.fault}
    with AnswerFile(job.folder, job.label, topology.ranks.rank, job.by) as out, bar:
        turns = -(-len(open_batches) // topology.copies)
        for turn in range(1, turns + 1):
            job.check()
            beat(turn, turns)
            if turn > len(mine):
                continue  # not every rank has a batch in the last turn
            number, kept = mine[turn - 1]
            torch.manual_seed(job.seed + number)
            answers = answered(job, cut[number], topology)
            if kept and topology.tp_rank == 0:
                out.write({pair: answer for pair, answer in answers.items() if pair not in done})
                unreadable |= {pair: answer.fault for pair, answer in answers.items() if answer.fault}
            bar.update(total * turn // len(mine) - bar.n)
    bad = {pair: fault for part in gathered(unreadable) for pair, fault in part.items()}
    lines = [f"{pair}: {bad[pair]}" for pair in job.heldout.references if pair in bad]
    # The same pairs are captioned at many steps, and again for the baselines.
    job.heldout.unreadable += [line for line in lines if line not in job.heldout.unreadable]


def standing(job: CaptioningJob) -> dict[str, Answer]:
    """The earlier answers, without those of pairs that could not be read then and can be read now."""
    known = read_answers(job.folder, job.label, job.by)
    faulty = [pair for pair, answer in known.items() if answer.fault and pair in job.heldout.references]
    for pair in faulty:
        with suppress(BadSample):
            prompt(job, pair)
            del known[pair]
    return known


def prompt(job: CaptioningJob, pair: str) -> TokenRow:
    """The prompt of a pair. Raises BadSample if it cannot be read."""
    sample = job.heldout.sample(pair)
    most = job.processor.config.max_pixels
    before, after = (open_upright(sample.images[role], most) for role in ("before", "after"))
    return job.processor.prompt(job.see(before, after), job.instruction or sample.instruction or job.usual)


def answered(job: CaptioningJob, pairs: list[str], topology: Topology) -> dict[str, Answer]:
    """The answers to `pairs`, computed in one batch; those of pairs that cannot be read have a fault.

    In a tensor-parallel group, the first rank reads and decodes, and all ranks compute.
    """
    rows: dict[str, TokenRow] = {}
    bad: dict[str, Answer] = {}
    for pair in pairs if topology.tp_rank == 0 else ():
        try:
            rows[pair] = prompt(job, pair)
        except BadSample as fault:
            bad[pair] = Answer("", fault=str(fault))
    rows = topology.from_tensor_rank_zero(rows)
    asked = list(rows.values())
    if job.in_step and not asked:
        blank = Image.new("RGB", (job.processor.image.size, job.processor.image.size))
        job.answer([job.processor.prompt([blank, blank], None)])
    captions = job.answer(asked) if asked else []
    looked = job.attention(asked) if job.attention and asked else None
    maps = [None] * len(asked) if looked is None else [packed(one) for one in looked]
    found = {pair: Answer(caption, one) for pair, caption, one in zip(rows, captions, maps, strict=True)}
    return {pair: bad.get(pair) or found.get(pair, Answer("")) for pair in pairs}
