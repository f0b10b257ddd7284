"""A trained model that captions pairs of pictures: `onediff.load(DIR).caption(before, after)`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from onediff.data.pictures import fitted, open_picture, to_rgb
from onediff.data.rows import Row
from onediff.data.sample import BadSample
from onediff.errors import UserError
from onediff.model.answer import answer
from onediff.model.saved import load_model

Picture = str | Path | bytes | Image.Image


class Captioner:
    """A saved model with its tokenizer and preprocessing, ready to answer."""

    def __init__(self, folder: str | Path, device: str | None = None) -> None:
        self.model, self.maker, self.tokenizer, self.saved = load_model(Path(folder))
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model.to(self.device)

    def caption(self, before: Picture, after: Picture, **options: Any) -> str:
        """One sentence about what differs. Pictures are files, bytes or PIL images of any kind and size.

        `options` are those of `captions`. Raises UserError for a file that is not a picture.
        """
        return next(self.captions([(before, after)], **options))

    def captions(
        self,
        pairs: Sequence[tuple[Picture, Picture]],
        *,
        instruction: str | None = None,
        batch_size: int = 16,
        **generation: Any,
    ) -> Iterator[str]:
        """Captions of many pairs, in order. `generation` goes to Hugging Face `generate` (`max_new_tokens`, …)."""
        for start in range(0, len(pairs), batch_size):
            chunk = pairs[start : start + batch_size]
            rows = [self.maker.prompt([self._read(before), self._read(after)], instruction) for before, after in chunk]
            yield from self.answer(rows, **generation)

    def answer(self, rows: list[Row], max_new_tokens: int = 64, **generation: Any) -> list[str]:
        """The answers to prompt rows (`RowMaker.prompt`), computed as one batch; greedy unless told otherwise."""
        return answer(self.model, self.tokenizer, rows, self.device, max_new_tokens=max_new_tokens, **generation)

    def _read(self, picture: Picture) -> np.ndarray:
        if isinstance(picture, Image.Image):
            return fitted(to_rgb(picture), self.maker.picture)
        name = "picture" if isinstance(picture, bytes) else str(picture)
        try:
            data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
            return fitted(open_picture(data, self.maker.config.max_pixels), self.maker.picture)
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror}") from None
        except BadSample as bad:
            raise UserError(f"{name}: not a picture that can be read: {bad.reason}") from None
