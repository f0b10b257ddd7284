"""Explains why a tokenizer cannot be read: which package or file is missing.

transformers tries several ways to read a tokenizer and reports only the last error. Without a vocabulary, some tokenizers
load silently but are empty.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onediff.errors import UserError
from onediff.parallel.pretrained_files import is_pointer, model_file

VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
"""Vocabulary files; every tokenizer has at least one."""

PACKAGES = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""Packages needed to read a SentencePiece vocabulary, and their modules."""


def knows_words(tokenizer: Any) -> bool:
    """Whether the tokenizer encodes ordinary text to more than unknown pieces."""
    return any(
        piece != tokenizer.unk_token_id for piece in tokenizer("an image", add_special_tokens=False)["input_ids"]
    )


def why_unreadable(name: str, revision: str | None, error: Exception | None) -> str:
    """One line about what the tokenizer `name` lacks; `error` is transformers' error, if any."""
    if error is not None and "trust_remote_code" in str(error):
        return "it needs its own code, which OneDiff does not run"
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        return "no such folder"
    try:
        found = {file: path for file in VOCABULARIES if (path := model_file(name, file, revision)) is not None}
    except UserError:
        found = None
    if found is None and error is not None:
        return _first_line(error)
    if not found and not Path(name).is_dir():
        return "not on the hub or in its cache; if this machine cannot reach the hub, run `onediff fetch CONFIG` beforehand"
    if not found:
        return f"it has no vocabulary file: none of {', '.join(VOCABULARIES)}"
    for file, path in found.items():
        if is_pointer(path):
            return f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
    pieces = [file for file in found if file.endswith(".model")]
    if pieces and "tokenizer.json" not in found:
        if _is_tiktoken(found[pieces[0]]):
            return f"{pieces[0]} is a tiktoken vocabulary; use the model's tokenizer.json, or `pip install tiktoken`"
        for package, module in PACKAGES.items():
            if not _there(module):
                return f"{pieces[0]} needs the package {package}, which is missing; `pip install {package}`"
        return f"{pieces[0]} is damaged, or of a kind that transformers does not support; download it again"
    file = next(iter(found))
    return f"{file} is damaged; download it again" if error is None else f"{file}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _is_tiktoken(path: str) -> bool:
    """Whether the file is a tiktoken vocabulary, in which each line is a piece in base 64 and its rank."""
    with open(path, "rb") as file:
        words = file.readline(200).split()
    return len(words) == 2 and words[1].isdigit()
