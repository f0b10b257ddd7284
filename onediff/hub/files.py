"""Chooses the files needed from a model's repository, and checks local ones. Torch-free."""

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
"""Possible weight files; the first that exists is used, as in transformers."""
SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Suffixes of configurations, vocabularies and templates."""
TOKENIZERS = ("tokenizer.json", ".model", "vocab.json", "vocab.txt", ".tiktoken")
"""Suffixes of tokenizer files; every tokenizer has at least one such file."""
OLD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M"
"""The first bytes of files written by PyTorch before 1.6."""


def needed(listed: Iterable[str], weights: bool, index: Callable[[str], Path]) -> list[str]:
    """Selects the files to download from those that a repository lists: weights in one format only, and all small files.

    `index` fetches an index of weights. Copies in other formats (TensorFlow, Flax, ONNX, `original/`) are ignored.
    """
    top = [file for file in listed if "/" not in file]
    small = [file for file in top if file.endswith(SMALL) and not file.endswith(INDEX)]
    form = next((form for form in WEIGHTS if form in top), None) if weights else None
    if form is None:
        return small
    return [*small, form, *(shards(index(form)) if form.endswith(INDEX) else [])]


def shards(index: Path) -> list[str]:
    """The weight files listed in an index. Raises UserError if the index cannot be read."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError):
        raise UserError(f"{index}: not readable as an index of weights; delete it and fetch it again") from None


def lacking(named: Named, folder: Path | None) -> list[str]:
    """What a named model's folder lacks: `weights`, `tokenizer`, a file name, or a full description of a damaged file."""
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
    """Why a weight file is damaged, judged by its header and size alone, or None."""
    try:
        if file.suffix == ".safetensors":
            size, promised = file.stat().st_size, _end_of(file)
            return None if size == promised else f"{file}: {size} bytes, but its header says {promised}"
        with file.open("rb") as opened:
            if opened.read(len(OLD)) == OLD:
                return None
        ZipFile(file).close()
    except FileNotFoundError:
        return f"{file}: a broken link"
    except (OSError, ValueError, KeyError, TypeError, BadZipFile):
        return f"{file}: not readable as {'safetensors' if file.suffix == '.safetensors' else 'PyTorch weights'}"
    return None


def _end_of(file: Path) -> int:
    """The size of a safetensors file according to its header. Raises ValueError, KeyError or TypeError for other files."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > os.fstat(opened.fileno()).st_size:
            raise ValueError("no header")
        header = json.loads(opened.read(length))
    ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)
