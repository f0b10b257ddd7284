"""Names and sizes of splits."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches
from itertools import accumulate, pairwise

from onediff.errors import UserError

SPLITS = "train=0.9,val=0.05,test=0.05"
KNOWN = ("train", "val", "test")
"""Splits that commands look for by default."""
ALIASES = {"valid": "val", "validation": "val", "dev": "val", "training": "train", "testing": "test"}
"""Other names that data sets use for them."""


def split_name(word: object) -> str:
    """The standard name of a split: `valid`, `validation` and `dev` are `val`."""
    plain = str(word).strip().lower()
    return ALIASES.get(plain, plain)


def split_in(path: str) -> str:
    """The split in the name of a file or its folder (`data/train-00000.parquet`, `valid/0001.tar`), else `train`."""
    *folders, name = path.lower().replace("\\", "/").split("/")
    for word in (*re.split(r"[-_.]", name), *reversed(folders)):
        if split_name(word) in KNOWN:
            return split_name(word)
    return "train"


def check_split(name: str, where: str, meant: Collection[str] = ()) -> None:
    """Raises UserError if a name is not a plain folder name, or looks like a misspelt known one and is not `meant`."""
    if "/" in name or name.startswith(".") or not name.isprintable() or len(name) > 60:
        raise UserError(f"{where}: split {name!r} must be a plain folder name")
    if name in ("true", "false") and name not in meant:
        raise UserError(
            f"{where}: split {name!r} is not the name of a split; write train, val or test in the column, or "
            "ignore it with --columns split="
        )
    usual = (*KNOWN, *ALIASES)
    # `testA`, `val2` and `trainval` are names of their own; `validaton` and `trainig` are not.
    longer = name.startswith(KNOWN)
    known = [one for one in usual if len(one) > len("valid")] if longer else usual
    if name in usual or name in meant:
        return
    if close := get_close_matches(name, known, n=1, cutoff=0.85 if longer else 0.75):
        raise UserError(f"{where}: split {name!r}: did you mean {close[0]!r}? If not, add --splits {name},…")


def split_counts(sizes: str, total: int) -> dict[str, int]:
    """Parses `train=0.9,val=0.1` into counts that add up to `total`; leaves out empty splits.

    Raises UserError for anything but `NAME=SIZE,…` with positive sizes.
    """
    shares: dict[str, float] = {}
    for part in sizes.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        try:
            shares[name] = float(size)
        except ValueError:
            shares[name] = -1
        if not name or not 0 < shares[name] < float("inf"):
            raise UserError(
                f"--split-sizes {sizes!r}: {part!r} is not NAME=SIZE with a size above zero, as in {SPLITS}"
            )
    whole = sum(shares.values())
    ends = [0, *(round(end / whole * total) for end in accumulate(shares.values()))]
    return {name: end - begin for name, (begin, end) in zip(shares, pairwise(ends), strict=True) if end > begin}
