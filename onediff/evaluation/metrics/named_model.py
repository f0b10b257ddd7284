"""Hugging Face models for metrics, loaded by name or folder, and reported with their version."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, TypeVar

from onediff.errors import UserError
from onediff.evaluation.metrics.metric import Metric, Unavailable

Own = TypeVar("Own", bound="ModelMetric")


class ModelMetric(Metric):
    """A metric with a model named after a colon: `bertscore:roberta-large`. Its scores carry the model's name."""

    titles: tuple[str, ...]
    """The names of the scores without the model's."""
    model = ""
    """A name on the Hugging Face hub, or a folder."""
    version = ""
    """Describes the loaded model; empty until it is loaded."""

    def of_model(self: Own, model: str) -> Own:
        if not model:
            raise UserError(f"metric {self.name!r}: name the model after a colon, as in {self.name}:NAME")
        made = copy.copy(self)
        made.model = model
        made.scores = tuple(f"{title} {short(model)}" for title in self.titles)
        made.shown = made.scores[:1]
        return made

    def notes(self, sums: Any) -> list[str]:
        return [f"{', '.join(self.scores)}: {self.version}"] if self.version else []

    def loaded(self, *classes: str) -> list[Any]:
        """One object of each of these transformers classes, from the model's files. Raises Unavailable."""
        import transformers

        made = []
        for name in classes:
            try:
                made.append(getattr(transformers, name).from_pretrained(self.model))
            except (OSError, ValueError, KeyError, ImportError) as error:
                raise Unavailable(f"{self.model} cannot be loaded: {str(error).splitlines()[0]}") from None
        revision = getattr(made[-1].config, "_commit_hash", None)
        digest = f"revision {revision[:12]}" if revision else f"weights {fingerprint(made[-1])}"
        self.version = f"{self.model}, {digest}, transformers {transformers.__version__}"
        return made


def short(model: str) -> str:
    """The last part of a name or path."""
    return Path(model).name


def fingerprint(model: Any) -> str:
    """A digest of a loaded model's weights; costs one pass over them."""
    import hashlib

    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(dtype=torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
