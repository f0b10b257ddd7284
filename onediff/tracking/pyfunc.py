"""The MLflow flavour of an exported model: `mlflow.pyfunc.load_model(URI).predict(table)` captions pairs of images.

MLflow keeps this file with the model and runs it when the model is loaded. The table has the columns `before` and `after`;
a cell is the path of an image, or its bytes in base64 (optionally a `data:` URL), so it fits into JSON and CSV. With the
parameter `judged`, the result is a table: caption, confidence, a warning about images unlike the training images, and the
caption that was replaced because it told a change that is not to be believed.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import mlflow
import pandas
from mlflow.pyfunc import PythonModel, PythonModelContext

from onediff.errors import UserError


class PyfuncModel(PythonModel):
    """An exported OneDiff model behind MLflow's `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the exported folder, once."""
        import onediff

        self.model = onediff.load(context.artifacts["model"])

    # No type hints: MLflow would read them as the model's signature, which is given when the model is logged.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """The captions of the pairs in `model_input`, a DataFrame with `before` and `after`, in order."""
        cells = zip(model_input["before"], model_input["after"], strict=True)
        pairs = [(image(before), image(after)) for before, after in cells]
        if not (params or {}).get("judged"):
            return list(self.model.captions(pairs))
        return pandas.DataFrame(self.model.judged(pairs), columns=["caption", "confidence", "warning", "instead_of"])


def image(cell: Any) -> Path | bytes:
    """The path of the image in a cell, or its bytes. Raises UserError for anything else."""
    if isinstance(cell, str) and not cell.startswith("data:") and len(cell) < 4096 and Path(cell).is_file():
        return Path(cell)
    try:
        return cell if isinstance(cell, bytes) else base64.b64decode(str(cell).rpartition(",")[2], validate=True)
    except ValueError:
        raise UserError(f"{str(cell)[:60]!r} is neither the path of an image nor an image in base64") from None


mlflow.models.set_model(PyfuncModel())
