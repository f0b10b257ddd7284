"""Pairs of real photographs that are similar but not the same: nearest neighbours of image embeddings within a band."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from data_prep.embedding import Embedder, rgb
from data_prep.image_source import SUFFIXES
from data_prep.readers import Row
from onediff.atomic import write_whole
from onediff.errors import UserError


def images_in(folder: Path) -> list[str]:
    """Paths of the images below `folder`, relative and sorted. Raises UserError if there are fewer than two."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    found = [
        str(Path(base, name).relative_to(folder))
        for base, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES)
    ]
    if len(found) < 2:
        raise UserError(f"{folder}: fewer than two images here")
    return sorted(found)


def embed(folder: Path, names: Sequence[str], model: str, batch: int = 32) -> tuple[NDArray[np.float32], list[str]]:
    """Unit-length embeddings `[images, width]` by a Hugging Face vision model, and the names of the readable images.

    The embedding is the mean over the last hidden states. Raises UserError if the model cannot be loaded.
    """
    embedder, rows, read = Embedder(model), [], []
    for start in tqdm(range(0, len(names), batch), desc="embedding", unit=" batches", disable=None, leave=False):
        some = [(name, image) for name in names[start : start + batch] if (image := opened(folder / name))]
        if some:
            rows.append(embedder([image for _, image in some]))
            read += [name for name, _ in some]
    if len(read) < 2:
        raise UserError(f"{folder}: fewer than two images can be read")
    return np.concatenate(rows), read


def opened(path: Path) -> Image.Image | None:
    """The image in RGB, or None if it cannot be decoded."""
    try:
        return rgb(path.read_bytes())
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def neighbours(
    vectors: NDArray[np.float32], low: float, high: float, nearest: int, each: int
) -> Iterator[tuple[int, int, float]]:
    """Yields `(first, second, cosine similarity)`, the most similar first, each pair once.

    `vectors` `[images, width]` have unit length. Only similarities in `[low, high]` count. Images more similar than `high`
    are near-duplicates; only the first of a group is used. Considers `nearest` neighbours; an image is in at most `each`
    pairs.
    """
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    similarity, neighbour = index.search(vectors, min(nearest + 1, len(vectors)))
    edges = sorted(
        {
            (-float(s), min(i, int(j)), max(i, int(j)))
            for i, (row, others) in enumerate(zip(similarity, neighbour, strict=True))
            for s, j in zip(row, others, strict=True)
            if j not in (-1, i) and s >= low
        }
    )
    copies = {second for s, _, second in edges if -s > high}
    taken: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    for s, first, second in edges:
        free = taken.get(first, 0) < each and taken.get(second, 0) < each
        if -s <= high and free and not {first, second} & copies and (first, second) not in seen:
            seen.add((first, second))
            for one in (first, second):
                taken[one] = taken.get(one, 0) + 1
            yield first, second, -s


@dataclass(frozen=True)
class RetrievalReport:
    """The result of a search for pairs."""

    pairs: int
    uncaptioned: int
    """Pairs left out because one of their images has no caption."""
    images: int
    unreadable: int


def find_pairs(
    folder: Path,
    out: Path,
    model: str,
    *,
    low: float,
    high: float,
    nearest: int,
    each: int,
    captions: Mapping[str, str] | None = None,
) -> RetrievalReport:
    """Writes the table of pairs in `folder`; with `captions`, by image path, also the captions of both images.

    Raises UserError if there is no pair.
    """
    names = images_in(folder)
    vectors, read = embed(folder, names, model)
    pairs = [(read[i], read[j], similarity) for i, j, similarity in neighbours(vectors, low, high, nearest, each)]
    if not pairs:
        raise UserError(f"{folder}: no two images have a similarity from {low} to {high}")
    known = [pair for pair in pairs if captions is None or (pair[0] in captions and pair[1] in captions)]
    if not known:
        raise UserError(
            f"{folder}: none of {len(pairs):,} pairs has captions for both images; the first image is {pairs[0][0]}"
        )
    write_pairs(out, known, captions)
    return RetrievalReport(len(known), len(pairs) - len(known), len(read), len(names) - len(read))


def captions_of(rows: Iterable[Row]) -> dict[str, str]:
    """The caption of each single image by its path; the first one if there are several."""
    found: dict[str, str] = {}
    for row in rows:
        path = row.images.get("image")
        if isinstance(path, str) and row.captions and row.captions[0].strip():
            found.setdefault(path, " ".join(row.captions[0].split()))
    return found


def write_pairs(path: Path, pairs: Sequence[tuple[str, str, float]], captions: Mapping[str, str] | None = None) -> None:
    """Writes a CSV with `before`, `after`, `similarity` and, if given, `caption_before` and `caption_after`."""
    file = io.StringIO(newline="")
    rows = csv.writer(file)
    rows.writerow(["before", "after", "similarity", *(["caption_before", "caption_after"] if captions else [])])
    for first, second, similarity in pairs:
        words = [captions[first], captions[second]] if captions else []
        rows.writerow([first, second, f"{similarity:.4f}", *words])
    write_whole(path, file.getvalue())
