"""A trained model that captions pairs of images: `onediff.load(DIR).caption(before, after)`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from onediff.data.formats import to_rgb
from onediff.data.images import open_upright
from onediff.data.rows import TokenRow, collate
from onediff.data.sample import BadSample
from onediff.errors import UserError
from onediff.evaluation.confidence import Judged, Knowledge
from onediff.evaluation.confidence.looks import log_probability, second_look
from onediff.model.answer import answer_ids, texts
from onediff.model.attention_map import attention_maps
from onediff.model.saved import load_model
from onediff.parallel.placement import ALONE, Placement
from onediff.parallel.topology import Topology

ImageLike = str | Path | bytes | Image.Image | np.ndarray


class Captioner:
    """A saved model with its tokenizer and preprocessing, ready to answer."""

    def __init__(
        self,
        folder: str | Path,
        device: str | None = None,
        *,
        precision: str = "auto",
        topology: Topology = ALONE.topology,
    ) -> None:
        """Loads a saved model. `precision` is `bf16`, `fp32` or `auto`: bf16 on a GPU that supports it, else fp32.

        If T > 1 in `topology`, the language model is split over the tensor group, and all its ranks must answer together.
        Raises UserError if the folder is not a saved model, or if the model cannot be split.
        """
        gpu = torch.cuda.is_available()
        self.device = torch.device(device or (f"cuda:{torch.cuda.current_device()}" if gpu else "cpu"))
        if precision == "auto":
            precision = "bf16" if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        placement = Placement(topology, device=str(self.device), dtype=self.dtype)
        self.model, self.processor, self.tokenizer, self.saved = load_model(Path(folder), placement=placement)
        self.knowledge = Knowledge.read(Path(folder))
        """None if the model was not calibrated."""

    def caption(self, before: ImageLike, after: ImageLike, **options: Any) -> str:
        """One sentence about what differs. Images are files, bytes, Pillow images of any mode and size, or
        arrays `[height, width, 3]` or `[height, width]` of uint8.

        `options` are those of `captions`. Raises UserError for a file that is not an image.
        """
        return next(self.captions([(before, after)], **options))

    def captions(
        self,
        pairs: Sequence[tuple[ImageLike, ImageLike]],
        *,
        instruction: str | None = None,
        batch_size: int = 16,
        **generation: Any,
    ) -> Iterator[str]:
        """Captions of many pairs, in order. `generation` sets `max_new_tokens`, `num_beams`, `do_sample`, …

        With `cuda_graph=True`, a GPU replays recorded steps of greedy search.
        """
        for rows in self._batches(pairs, instruction, batch_size):
            yield from self.answer(rows, **generation)

    def judged(
        self,
        pairs: Sequence[tuple[ImageLike, ImageLike]],
        *,
        instruction: str | None = None,
        batch_size: int = 16,
        **generation: Any,
    ) -> Iterator[Judged]:
        """`captions`, each with its confidence, or a warning if the images are unlike the training images."""
        for rows in self._batches(pairs, instruction, batch_size):
            yield from self.judged_answers(rows, **generation)

    def _batches(
        self, pairs: Sequence[tuple[ImageLike, ImageLike]], instruction: str | None, size: int
    ) -> Iterator[list[TokenRow]]:
        for start in range(0, len(pairs), size):
            yield [self.row(*pair, instruction=instruction) for pair in pairs[start : start + size]]

    def row(self, before: ImageLike, after: ImageLike, instruction: str | None = None) -> TokenRow:
        """The prompt of one pair. Raises UserError for a file that is not an image and for an invalid instruction."""
        images = [self._read(before), self._read(after)]
        try:
            return self.processor.prompt(images, instruction)
        except BadSample as bad:
            what = (
                f"instruction {instruction!r}" if bad.kind != "too_many_pixels" else f"{_name(before)}, {_name(after)}"
            )
            raise UserError(f"{what}: {bad.reason}") from None

    def answer(self, rows: list[TokenRow], max_new_tokens: int = 64, **generation: Any) -> list[str]:
        """The answers to prompt rows (`Processor.prompt`), computed as one batch; greedy unless told otherwise."""
        return self.texts(self.answer_ids(rows, max_new_tokens, **generation))

    def answer_ids(self, rows: list[TokenRow], max_new_tokens: int = 64, **generation: Any) -> list[list[int]]:
        """The answers as tokens, including the token that ends an answer."""
        options = {"ends": self.processor.prompter.ends, "max_new_tokens": max_new_tokens, **generation}
        return answer_ids(self.model, self.tokenizer, rows, self.device, **options)

    def texts(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """The words of `answer_ids`."""
        return texts(self.tokenizer, answers, {*self.processor.prompter.ends, self.tokenizer.eos_token_id})

    def judged_answers(self, rows: list[TokenRow], max_new_tokens: int = 64, **generation: Any) -> list[Judged]:
        """The answers to prompt rows of pairs, with confidence or warning.

        A calibrated model runs on each pair a second time, which costs about as much as reading its prompt; one that
        refuses to invent changes runs on each pair that it tells a change of up to three times more.
        """
        answers = self.answer_ids(rows, max_new_tokens, **generation)
        captions = self.texts(answers)
        if self.knowledge is None:
            return [Judged(caption) for caption in captions]
        means, features = second_look(self.model, rows, answers, self.device)
        refusal = self.knowledge.refusal
        nothing = self.nothing(rows, captions, () if refusal is None else refusal.sentences)
        return [self.knowledge.judged(*one) for one in zip(captions, means, features, nothing, strict=True)]

    def nothing(self, rows: list[TokenRow], captions: Sequence[str], sentences: Sequence[str]) -> np.ndarray:
        """`[rows]`: the log-probability of all `sentences` together as an answer to each row; NaN if there are none, or if
        the row's caption is one of them."""
        found = np.full(len(rows), np.nan)
        told = [number for number, caption in enumerate(captions) if caption not in sentences]
        if sentences and told:
            answers = [self.processor.prompter.answer(sentence) for sentence in sentences]
            found[told] = log_probability(self.model, [rows[number] for number in told], answers, self.device)
        return found

    def attention_maps(self, rows: list[TokenRow]) -> np.ndarray:
        """`[rows, 2, side, side]`: where in before and after the delta module looks; the values of a row sum to 1."""
        return attention_maps(self.model, collate(rows, pad_left=True).to(self.device)).cpu().numpy()

    def attention(self, before: ImageLike, after: ImageLike) -> np.ndarray:
        """`[2, side, side]`: the attention map of one pair, see `attention_maps`."""
        return self.attention_maps([self.row(before, after)])[0]

    def _read(self, image: ImageLike) -> Image.Image:
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or (image.ndim != 2 and image.shape[2:] not in ((3,), (4,))):
                raise UserError(
                    f"image: an array of {image.dtype}, {image.shape}; give [height, width, 3] or [height, width] of uint8"
                )
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            try:
                return to_rgb(image)
            except BadSample as bad:
                raise UserError(f"image: {bad.reason}") from None
        name = _name(image)
        try:
            data = image if isinstance(image, bytes) else Path(image).read_bytes()
            return open_upright(data, self.processor.config.max_pixels)
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror}") from None
        except BadSample as bad:
            raise UserError(f"{name}: not an image that can be read: {bad.reason}") from None


def _name(image: ImageLike) -> str:
    return str(image) if isinstance(image, str | Path) else "image"
