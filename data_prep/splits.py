"""How many samples each split gets."""

from __future__ import annotations

from itertools import accumulate, pairwise

from onediff.errors import UserError

SPLITS = "train=0.9,val=0.05,test=0.05"


def split_counts(sizes: str, total: int) -> dict[str, int]:
    """`train=0.9,val=0.1` as counts that add up to `total`; splits that get none are left out.

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
