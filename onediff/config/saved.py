"""Resolves `model: FOLDER`, where the folder is an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from onediff.config.model import SAVED_MODEL_FILE
from onediff.config.renamed import under_new_names
from onediff.errors import UserError


def saved_model(name: str, beside: Path) -> Path | None:
    """The export folder `name`, relative to the folder `beside` or the working directory, or None."""
    folders = (beside / name, Path(name))
    return next((folder for folder in folders if (folder / SAVED_MODEL_FILE).is_file()), None)


def saved_model_section(folder: Path) -> dict[str, Any]:
    """The `model` section for a model like the export in `folder`: its architecture and tokenizer, without its weights.

    Raises UserError for a damaged export.
    """
    try:
        section = under_new_names(yaml.safe_load((folder / SAVED_MODEL_FILE).read_text(encoding="utf-8")))["model"]
        for part in ("vision", "language"):
            architecture = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
            section[part] = {**section[part], "name": None, "config": architecture}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{folder}: not a readable export: {' '.join(str(error).split())}") from None
    section["language"]["tokenizer"] = str(folder / "tokenizer")
    return section
