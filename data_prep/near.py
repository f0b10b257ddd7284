"""Near-duplicates by perceptual hash, which another size, quality or file format hardly changes."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from data_prep.images import upright_rgb
from onediff.data.formats import open_image

BITS = 64


def image_hash(data: bytes) -> int:
    """A dHash of 64 bits: whether each of 8 × 8 cells of the grey image is darker than its right neighbour.

    Raises Pillow's error if `data` is not an image.
    """
    with open_image(io.BytesIO(data)) as image:
        image.draft("L", (64, 64))  # decodes only an eighth of a JPEG
        grey = upright_rgb(image).convert("L").resize((9, 8), Image.Resampling.BOX)
    levels = np.asarray(grey, dtype=np.int16)
    return int.from_bytes(np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes(), "big")


def near_duplicates(hashes: Iterable[Sequence[int]], bits: int) -> Iterator[tuple[int, int]]:
    """Yields `(i, j)` if number `i` is a near-duplicate of the earlier `j`: no hash differs in more than `bits` bits.

    Exact: one of `bits + 1` pieces of the hashes must be equal. Near-duplicates are not compared with later items.
    """
    edges = [BITS * n // (bits + 1) for n in range(bits + 2)]
    places: dict[tuple[int, int, int], list[tuple[int, Sequence[int]]]] = defaultdict(list)
    for i, own in enumerate(hashes):
        if not own:
            continue
        pieces = [(len(own), n, own[0] >> edges[n] & (1 << edges[n + 1] - edges[n]) - 1) for n in range(bits + 1)]
        twin = next((j for piece in pieces for j, other in places.get(piece, ()) if _is_near(own, other, bits)), None)
        if twin is not None:
            yield i, twin
            continue
        for piece in pieces:
            places[piece].append((i, own))


def _is_near(own: Sequence[int], other: Sequence[int], bits: int) -> bool:
    return all((a ^ b).bit_count() <= bits for a, b in zip(own, other, strict=True))
