"""From samples to rows, and from rows to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onediff.data.batch import Batch
from onediff.data.config import DataConfig
from onediff.data.lanes import mix64
from onediff.data.pictures import decode
from onediff.data.prompts import DELTA, PICTURE, Prompter, Turn
from onediff.data.sample import BadSample, Fault, Sample
from onediff.model.config import PictureConfig


@dataclass
class Row:
    """One sequence, ready to be laid into a batch."""

    token_ids: Tensor
    """`[tokens]` int64 with `PICTURE` and `DELTA` places."""
    is_target: Tensor
    """`[tokens]` bool."""
    pictures: Tensor
    """`[0, 1 or 2, 3, size, size]` uint8."""
    is_pair: bool
    source: int
    """Index of the source in the mix."""
    ids: tuple[str, ...]
    """Ids of the samples in it."""
    was_cut: bool = False
    next_draw: int = 0
    """The lane's position behind this row."""
    skipped: list[Fault] = field(default_factory=list)
    """The bad samples passed over on the way to this row."""


class RowMaker:
    """Writes rows for one model: its tokenizer, its preprocessing, its numbers of image and delta tokens."""

    def __init__(self, prompter: Prompter, picture: PictureConfig, config: DataConfig) -> None:
        self.prompter = prompter
        self.picture = picture
        self.config = config

    def row(self, sample: Sample, task: str | None, draw: int, source: int = 0) -> Row:
        """A pair, a single image or a text as a training row; `draw` picks one of several captions.

        Raises BadSample for a picture that cannot be read, or for a sample longer than `max_tokens` under
        `too_long: skip`.
        """
        task = task or ("pair" if sample.is_pair else "single")
        return self._made(self._pictures(sample), sample.is_pair, self._turns(sample, task, draw), source, (sample.id,))

    def couple(self, first: Sample, second: Sample, draw: int, source: int = 0) -> Row:
        """Two single-image samples as a pseudo pair whose answer is both captions in order (paper, section 3.3)."""
        answers = [self._caption(sample, mix64(draw, place)) for place, sample in enumerate((first, second))]
        answer = self.prompter.config.couple_answer.format(first=answers[0], second=answers[1])
        turns = [Turn(self.prompter.instruction("couple"), answer)]
        pictures = self._pictures(first) + self._pictures(second)
        if len(pictures) != 2:
            raise BadSample("not_single", f"{first.id} and {second.id}: coupling takes samples with one image each")
        return self._made(pictures, True, turns, source, (first.id, second.id))

    def prompt(self, pictures: list[np.ndarray], instruction: str | None, task: str = "pair") -> Row:
        """A row to be answered by the model: decoded pictures and an instruction, no target."""
        turns = [Turn(instruction or self.prompter.instruction(task), None)]
        return self._made(pictures, len(pictures) == 2, turns, 0, ())

    def _turns(self, sample: Sample, task: str, draw: int) -> list[Turn]:
        if sample.conversations:
            return _turns_of(sample.conversations)
        return [Turn(sample.instruction or self.prompter.instruction(task), self._caption(sample, draw))]

    def _caption(self, sample: Sample, draw: int) -> str:
        if sample.captions:
            return sample.captions[draw % len(sample.captions)]
        return self._turns(sample, "single", draw)[0].answer or ""

    def _pictures(self, sample: Sample) -> list[np.ndarray]:
        roles = ("before", "after") if sample.is_pair else tuple(sample.pictures)
        return [decode(sample.pictures[role], self.picture, self.config.max_pixels) for role in roles]

    def _made(
        self, pictures: list[np.ndarray], is_pair: bool, turns: list[Turn], source: int, ids: tuple[str, ...]
    ) -> Row:
        sequence = self.prompter.sequence(len(pictures), is_pair, turns)
        longest, ends_answer = self.config.max_tokens, bool(turns[-1].answer)
        too_long = len(sequence.token_ids) > longest
        if too_long:
            prompt_length = sequence.is_target.index(True) if ends_answer else len(sequence.token_ids)
            if self.config.too_long == "skip" or prompt_length >= longest:
                raise BadSample("too_long", f"{len(sequence.token_ids)} tokens, max_tokens is {longest}")
        size = self.picture.size
        shape = (0, 3, size, size)
        return Row(
            token_ids=torch.tensor(sequence.token_ids[:longest]),
            is_target=torch.tensor(sequence.is_target[:longest]),
            pictures=torch.from_numpy(np.stack(pictures)) if pictures else torch.zeros(shape, dtype=torch.uint8),
            is_pair=is_pair,
            source=source,
            ids=ids,
            was_cut=too_long,
        )


def _turns_of(conversation: Sequence[dict[str, str]]) -> list[Turn]:
    """What was said before each answer, and the answer; LLaVA marks the picture's place, which is always the start here."""
    turns: list[Turn] = []
    words: list[str] = []
    for said in conversation:
        text = said["value"].replace("<image>", "").strip()
        if said["from"] != "gpt":
            words.append(text)
        elif text:
            turns.append(Turn("\n".join(words), text))
            words = []
    return turns


def collate(rows: list[Row], pad_left: bool = False) -> Batch:
    """Rows of one sample each, padded to the longest; on the left for generation, where `segment_ids` mark the padding."""
    length = max(len(row.token_ids) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    targets = torch.zeros(len(rows), length, dtype=torch.bool)
    positions = torch.arange(length).repeat(len(rows), 1)
    segments = torch.zeros_like(ids) if pad_left else None
    pictures: list[Tensor] = []
    pairs: list[list[int]] = []
    for number, row in enumerate(rows):
        start = length - len(row.token_ids) if pad_left else 0
        here = slice(start, start + len(row.token_ids))
        ids[number, here] = row.token_ids
        targets[number, here] = row.is_target
        if segments is not None:
            segments[number, here] = 1
            positions[number] = (positions[number] - start).clamp(min=0)
        if row.is_pair:
            pairs.append([len(pictures), len(pictures) + 1])
        pictures += list(row.pictures)
    flat = ids.flatten()
    target_places = targets.flatten().nonzero().flatten()
    sources = torch.tensor([row.source for row in rows])
    return Batch(
        token_ids=ids.clamp(min=0),
        position_ids=positions,
        segment_ids=segments,
        pictures=torch.stack(pictures) if pictures else rows[0].pictures,
        picture_places=(flat == PICTURE).nonzero().flatten(),
        pairs=torch.tensor(pairs, dtype=torch.int64).view(-1, 2),
        delta_places=(flat == DELTA).nonzero().flatten(),
        # The hidden state in front of a target predicts it.
        target_places=target_places - 1,
        target_ids=flat[target_places],
        target_sources=sources[target_places // length],
        info=_info(rows),
    )


def _info(rows: list[Row]) -> dict[str, Any]:
    return {
        "ids": [row.ids for row in rows],
        "tokens": sum(len(row.token_ids) for row in rows),
        "cut": sum(row.was_cut for row in rows),
        "skipped": [fault for row in rows for fault in row.skipped],
    }
