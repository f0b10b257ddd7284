"""Which files of a model's repository are needed, and what is wrong with those that are here. Torch-free."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from onediff.errors import UserError
from onediff.hub.named import Named

INDEX = ".index.json"
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
"""Where weights may be, the first that is there counts, as in transformers."""
SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Endings of configurations, vocabularies and templates."""
TOKENIZERS = ("tokenizer.json", ".model", "vocab.json", "vocab.txt", ".tiktoken")
"""Endings of files of which a tokenizer has at least one."""
OLD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M"
"""How a file begins that PyTorch wrote before 1.6."""


def needed(listed: Iterable[str], weights: bool, index: Callable[[str], Path]) -> list[str]:
    """The files to take of those that a repository lists: weights in one form only, and all that is small beside them.

    `index` brings an index of weights. Copies in other forms (TensorFlow, Flax, ONNX, `original/`) stay where they are.
    """
    top = [file for file in listed if "/" not in file]
    small = [file for file in top if file.endswith(SMALL) and not file.endswith(INDEX)]
    form = next((form for form in WEIGHTS if form in top), None) if weights else None
    if form is None:
        return small
    return [*small, form, *(shards(index(form)) if form.endswith(INDEX) else [])]


def shards(index: Path) -> list[str]:
    """The weight files that an index names. Raises UserError when it cannot be read."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError):
        raise UserError(f"{index}: not readable as an index of weights; delete it and fetch it again") from None


def lacking(named: Named, folder: Path | None) -> list[str]:
    """What of a named model is not in its folder: `weights`, `tokenizer`, a file; one that is damaged is named in full."""
    if folder is None:
        return ["weights"] * named.weights + ["tokenizer"] * named.tokenizer or ["config.json"]
    there = {path.name for path in folder.iterdir()}
    found = ["config.json"] if named.config and "config.json" not in there else []
    if named.tokenizer and not any(name.endswith(TOKENIZERS) and not name.endswith(INDEX) for name in there):
        found.append("tokenizer")
    if not named.weights:
        return found
    form = next((form for form in WEIGHTS if form in there), None)
    if form is None:
        return [*found, "weights"]
    try:
        files = shards(folder / form) if form.endswith(INDEX) else [form]
    except UserError as error:
        return [*found, str(error)]
    absent = [file for file in files if file not in there]
    return [*found, *absent, *filter(None, (damage(folder / file) for file in files if file in there))]


def damage(file: Path) -> str | None:
    """Why a file of weights cannot be whole, from its header and size alone; None if it may be."""
    try:
        if file.suffix == ".safetensors":
            size, promised = file.stat().st_size, _end_of(file)
            return None if size == promised else f"{file}: {size} bytes, but its header says {promised}"
        with file.open("rb") as opened:
            if opened.read(len(OLD)) == OLD:
                return None
        ZipFile(file).close()
    except FileNotFoundError:
        return f"{file}: a link to nothing"
    except (OSError, ValueError, KeyError, TypeError, BadZipFile):
        return f"{file}: not readable as {'safetensors' if file.suffix == '.safetensors' else 'PyTorch weights'}"
    return None


def _end_of(file: Path) -> int:
    """The size that the header of a safetensors file promises. Raises ValueError, KeyError or TypeError for another file."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > os.fstat(opened.fileno()).st_size:
            raise ValueError("no header")
        header = json.loads(opened.read(length))
    ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)
