"""Sequences for a language model alone, and rows of them, padded or packed."""

from dataclasses import replace

import torch
from causal_models import WIDTH

from onediff.data.batch import Batch
from onediff.data.segments import Segments

LENGTHS = (11, 7)


def sequences() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Embeddings `[1, tokens, width]`, as of images and words, and the words' ids `[1, tokens]`."""
    generator = torch.Generator().manual_seed(1)
    return [
        (0.5 * torch.randn(1, n, WIDTH, generator=generator), torch.randint(3, 60, (1, n), generator=generator))
        for n in LENGTHS
    ]


def rows_of(samples: list[list[int]], tokens: int, packed: bool) -> tuple[torch.Tensor, Batch]:
    """The numbered sequences in padded rows: embeddings and batch."""
    embeds = torch.zeros(len(samples), tokens, WIDTH)
    ids, positions, segments = (torch.zeros(len(samples), tokens, dtype=torch.long) for _ in range(3))
    places, lengths, found = [], [], sequences()
    for row, inside in enumerate(samples):
        start = 0
        for number, sample in enumerate(inside, 1):
            here = slice(start, start + LENGTHS[sample])
            embeds[row, here], ids[row, here] = found[sample][0][0], found[sample][1][0]
            positions[row, here], segments[row, here] = torch.arange(LENGTHS[sample]), number
            places += range(row * tokens + start, row * tokens + here.stop - 1)
            lengths.append(LENGTHS[sample])
            start = here.stop
        if start < tokens:
            positions[row, start:] = torch.arange(tokens - start)
            lengths.append(tokens - start)
    where, none = torch.tensor(places), torch.zeros(0, dtype=torch.long)
    batch = Batch(
        token_ids=ids,
        position_ids=positions,
        segment_ids=segments,
        images=none,
        image_places=none,
        pairs=0,
        delta_places=none,
        target_places=where,
        target_ids=ids.flatten()[where + 1],
        target_sources=torch.zeros_like(where),
        segments=Segments.of(lengths),
    )
    return embeds, batch if packed else replace(batch, segments=None, segment_ids=None)
