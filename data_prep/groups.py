"""Groups rows that are held out together: those that share an image, or a value of a column."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence


def image_groups(images: Sequence[Sequence[bytes]]) -> list[bytes]:
    """The name of each row's group, from the fingerprints of its images: rows that share an image share a group.

    A group's name is its smallest fingerprint, so it does not depend on the order of the rows.
    """
    parent: dict[bytes, bytes] = {}

    def root(image: bytes) -> bytes:
        while (above := parent.setdefault(image, image)) != image:
            parent[image] = parent[above]
            image = above
        return image

    for row in images:
        roots = sorted({root(image) for image in row})
        for other in roots[1:]:
            parent[other] = roots[0]
    # A row without all its images is skipped later, so it belongs to no group.
    return [root(row[0]) if row else b"%d" % i for i, row in enumerate(images)]


def held_out(groups: Sequence[str | bytes], fraction: float) -> set[int]:
    """The rows to hold out: whole groups, in the order of a hash of their names, up to the fraction.

    If no group is small enough, takes the smallest, unless it is the only one.
    """
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda name: hashlib.blake2b(_bytes(name), digest_size=8).digest())
    room, chosen = round(fraction * len(groups)), set()
    for name in order:
        if sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
    if not chosen and len(sizes) > 1:
        chosen.add(min(order, key=lambda name: sizes[name]))
    return {i for i, name in enumerate(groups) if name in chosen}


def _bytes(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def parted(groups: Sequence[str | bytes], counts: Mapping[str, int]) -> list[str]:
    """The split of each row: assigns whole groups, the largest first, to the split that lacks most of its count."""
    sizes = Counter(groups)
    lacking = dict(counts)
    split_of: dict[str | bytes, str] = {}
    order = sorted(sizes, key=lambda name: (-sizes[name], hashlib.blake2b(_bytes(name), digest_size=8).digest()))
    for name in order:
        split_of[name] = max(lacking, key=lambda split: lacking[split])
        lacking[split_of[name]] -= sizes[name]
    return [split_of[name] for name in groups]
