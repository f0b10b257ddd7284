"""Turns samples into rows, and collates rows into batches."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onediff.config.data import DataConfig
from onediff.config.model import ImageConfig
from onediff.data.batch import Batch
from onediff.data.fits import Seen, fit_of
from onediff.data.lanes import SamplePlace, mix64
from onediff.data.planes import laid_out
from onediff.data.prompts import DELTA, IMAGE, Prompter, Turn
from onediff.data.prompts import Sequence as TokenSequence
from onediff.data.sample import BadSample, Fault, Sample
from onediff.data.segments import Segments
from onediff.hub.planes_onediff import OneDiffPlane

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class TokenRow:
    """One sequence, ready to be collated."""

    token_ids: Tensor
    """`[tokens]` int64, with `IMAGE` and `DELTA` placeholders."""
    is_target: Tensor
    """`[tokens]` bool."""
    images: Tensor
    """The tower's input, uint8: `[views, 3, size, size]`, with one or more views per image, or `[patches, numbers]` with
    `fit: native`."""
    image_tokens: tuple[int, ...]
    """Image tokens of each image."""
    is_pair: bool
    source: int
    """Index of the source in the mix."""
    ids: tuple[str, ...]
    """Ids of its samples."""
    places: tuple[SamplePlace, ...] = ()
    """Places of its samples in the source."""
    planes: tuple[OneDiffPlane, ...] = ()
    """The token layout of each image; empty if every image is one view."""
    features: Tensor | None = None
    """`[views, layers, tokens, width]`: precomputed features of its images, if there are any; `images` is then empty."""
    was_cut: bool = False
    skipped: list[Fault] = field(default_factory=list)
    """The bad samples skipped before this row."""


class Processor:
    """Makes rows for one model, with its tokenizer, preprocessing, and numbers of image and delta tokens."""

    def __init__(self, prompter: Prompter, image: ImageConfig, config: DataConfig, patch: int) -> None:
        """`patch` is the side of the tower's patches in pixels."""
        self.prompter = prompter
        self.image = image
        self.fit = fit_of(image, patch)
        self.config = config

    def row(
        self, sample: Sample, task: str | None, choice: int, source: int = 0, features: Tensor | None = None
    ) -> TokenRow:
        """A pair, a single image or a text as a training row; `choice` picks one of several captions.

        With precomputed `features`, decodes no images. Raises BadSample if an image cannot be read, or if the sample is
        longer than `max_tokens` and `too_long` is `skip`.
        """
        turns = self._turns(sample, task, choice)
        return self._made(self._seen(features, sample), sample.is_pair, turns, source, (sample.id,), features)

    def tokens(self, sample: Sample, task: str | None, choice: int) -> int:
        """The length of `row` in tokens, without decoding images. Raises BadSample."""
        lengths = self.fit.lengths(encoded(sample), self.config.max_pixels)
        return len(self._sequence(lengths, sample.is_pair, self._turns(sample, task, choice))[0].token_ids)

    def couple_tokens(self, first: Sample, second: Sample, choice: int) -> int:
        """The length of `couple` in tokens, without decoding images. Raises BadSample."""
        lengths = self.fit.lengths(encoded(first, second), self.config.max_pixels)
        return len(self._sequence(lengths, True, self._couple_turns(first, second, choice))[0].token_ids)

    def couple(
        self, first: Sample, second: Sample, choice: int, source: int = 0, features: Tensor | None = None
    ) -> TokenRow:
        """Couples two single-image samples into a pseudo pair; its answer is both captions (paper, section 3.3)."""
        turns = self._couple_turns(first, second, choice)
        if len(first.images) + len(second.images) != 2:
            raise BadSample("not_single", f"{first.id} and {second.id}: coupling takes samples with one image each")
        seen = self._seen(features, first, second)
        return self._made(seen, True, turns, source, (first.id, second.id), features)

    def _couple_turns(self, first: Sample, second: Sample, choice: int) -> list[Turn]:
        answers = [self._caption(sample, mix64(choice, place)) for place, sample in enumerate((first, second))]
        answer = self.prompter.config.couple_answer.format(first=answers[0], second=answers[1])
        return [Turn(self.prompter.instruction("couple", choice), answer)]

    def prompt(self, images: Sequence[Image], instruction: str | None, task: str = "pair") -> TokenRow:
        """A row for generation: upright RGB images, and an instruction or that of a task. It has no targets.

        Raises BadSample if the instruction has places for another number of images.
        """
        turns = [Turn(instruction or self.prompter.instruction(task), None)]
        return self._made(self.fit.of(images), len(images) == 2, turns, 0, ())

    def _turns(self, sample: Sample, task: str | None, choice: int) -> list[Turn]:
        task = task or ("pair" if sample.is_pair else "single")
        if sample.conversations:
            return _turns_of(sample.conversations)
        return [Turn(sample.instruction or self.prompter.instruction(task, choice), self._caption(sample, choice))]

    def _caption(self, sample: Sample, choice: int) -> str:
        if sample.captions:
            return sample.captions[choice % len(sample.captions)]
        return self._turns(sample, "single", choice)[0].answer or ""

    def _seen(self, features: Tensor | None, *samples: Sample) -> Seen:
        """The tower's input for the images of these samples, or only its layout with `features`. Raises BadSample."""
        if features is not None:
            return self.fit.placed(encoded(*samples), self.config.max_pixels)
        return self.fit.read(encoded(*samples), self.config.max_pixels, self.config.pixels)

    def _made(
        self,
        seen: Seen,
        is_pair: bool,
        turns: list[Turn],
        source: int,
        ids: tuple[str, ...],
        features: Tensor | None = None,
    ) -> TokenRow:
        sequence, was_cut = self._sequence(seen.tokens, is_pair, turns)
        return TokenRow(
            # torch.tensor on a list inspects every number, which took a twentieth of the loader's time.
            token_ids=torch.frombuffer(array("q", sequence.token_ids), dtype=torch.int64),
            is_target=torch.frombuffer(bytearray(sequence.is_target), dtype=torch.bool),
            images=torch.from_numpy(seen.images),
            image_tokens=seen.tokens,
            planes=seen.planes,
            features=features,
            is_pair=is_pair,
            source=source,
            ids=ids,
            was_cut=was_cut,
        )

    def _sequence(self, images: Sequence[int], is_pair: bool, turns: list[Turn]) -> tuple[TokenSequence, bool]:
        """The tokens of a sample, and whether its answer was cut. Raises BadSample."""
        sequence = self.prompter.sequence(images, is_pair, turns)
        length, longest, ends_answer = len(sequence.token_ids), self.config.max_tokens, bool(turns[-1].answer)
        if length <= longest:
            return sequence, False
        prompt_length = sequence.is_target.index(True) if ends_answer else length
        if self.config.too_long == "skip" or prompt_length >= longest:
            raise BadSample("too_long", f"{length} tokens, max_tokens is {longest}")
        if min(sequence.token_ids[longest:]) < 0:
            raise BadSample("too_long", f"{length} tokens, and an image lies beyond max_tokens, which is {longest}")
        return TokenSequence(sequence.token_ids[:longest], sequence.is_target[:longest]), True


def encoded(*samples: Sample) -> list[bytes]:
    """The encoded images of these samples; for a pair, before then after."""
    return [
        sample.images[role] for sample in samples for role in (("before", "after") if sample.is_pair else sample.images)
    ]


def _turns_of(conversation: Sequence[dict[str, str]]) -> list[Turn]:
    """The turns of a conversation: all words before each answer, and the answer. `<image>` marks images in the words."""
    turns: list[Turn] = []
    words: list[str] = []
    for turn in conversation:
        text = turn["value"].strip()
        if turn["from"] != "gpt":
            words.append(text)
        elif text:
            turns.append(Turn("\n".join(words), text))
            words = []
    return turns


def collate(rows: list[TokenRow], pad_left: bool = False) -> Batch:
    """Collates rows of one sample each, padded to the longest.

    For generation they are padded on the left, and `segment_ids` marks the padding.
    """
    length = max(len(row.token_ids) for row in rows)
    batch = _laid_out([[row] for row in rows], length, pad_left)
    return batch if pad_left else replace(batch, segments=None, segment_ids=None)


def collate_packed(rows: list[list[TokenRow]], tokens: int) -> Batch:
    """Collates packed rows of `tokens` tokens, with attention confined to each sample."""
    return _laid_out(rows, tokens, pad_left=False)


def _laid_out(rows: list[list[TokenRow]], length: int, pad_left: bool) -> Batch:
    """Lays samples end to end in their rows. The rest of a row is padding, which forms its own segment."""
    shape = (len(rows), length)
    # In numpy, where small operations cost a third of torch's.
    ids, positions, segments, sources = (np.zeros(shape, np.int64) for _ in range(4))
    targets = np.zeros(shape, np.bool_)
    lengths: list[int] = []
    samples: list[tuple[int, TokenRow]] = []  # each with its start in the flattened rows
    for number, row in enumerate(rows):
        padding = length - sum(len(sample.token_ids) for sample in row)
        assert padding >= 0, f"{length - padding} tokens in a row of {length}"
        start = padding if pad_left else 0
        for place, sample in enumerate(row):
            here = slice(start, start + len(sample.token_ids))
            ids[number, here] = sample.token_ids.numpy()
            targets[number, here] = sample.is_target.numpy()
            positions[number, here] = np.arange(len(sample.token_ids))
            segments[number, here] = place + 1
            sources[number, here] = sample.source
            samples.append((number * length + start, sample))
            lengths.append(len(sample.token_ids))
            start = here.stop
        if padding:
            lengths.append(padding)
            if not pad_left:
                positions[number, start:] = np.arange(padding)
    # Pairs first, so that images 2b and 2b + 1 are the before and after images of pair b.
    in_order = sorted(samples, key=lambda found: not found[1].is_pair)
    places = [start + np.flatnonzero(sample.token_ids.numpy() == IMAGE) for start, sample in in_order]
    flat, target_places = ids.ravel(), np.flatnonzero(targets)
    images, planes = laid_out([sample for _, sample in in_order])
    features = [sample.features for _, sample in in_order if sample.features is not None]
    assert not features or len(features) == len(in_order), "a phase has features of all its data sets or of none"
    return Batch(
        token_ids=torch.from_numpy(np.maximum(ids, 0)),
        position_ids=torch.from_numpy(positions),
        segment_ids=torch.from_numpy(segments),
        images=images,
        planes=planes,
        features=torch.cat(features) if features else None,
        image_places=torch.from_numpy(np.concatenate(places)),
        pairs=sum(sample.is_pair for _, sample in samples),
        delta_places=torch.from_numpy(np.flatnonzero(flat == DELTA)),
        # The position before a target predicts it.
        target_places=torch.from_numpy(target_places - 1),
        target_ids=torch.from_numpy(flat[target_places]),
        target_sources=torch.from_numpy(sources.ravel()[target_places]),
        segments=Segments.of(lengths),
        info=_info(rows),
    )


def _info(rows: list[list[TokenRow]]) -> dict[str, Any]:
    samples = [sample for row in rows for sample in row]
    return {
        "ids": [tuple(id for sample in row for id in sample.ids) for row in rows],
        "places": [(sample.source, sample.places) for sample in samples],
        "samples": len(samples),
        "tokens": sum(len(sample.token_ids) for sample in samples),
        "sources": [sample.source for sample in samples],
        "cut": [sample.was_cut for sample in samples],
        "skipped": [fault for sample in samples for fault in sample.skipped],
    }
