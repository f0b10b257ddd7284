"""Evenly spaced samples of a data set, as cards of a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onediff.data.index import read_index, read_sample
from onediff.data.manifest import Manifest
from onediff.data.sample import BadSample, Sample, parse_sample


def cards(manifest: Manifest, most: int) -> Iterator[dict[str, Any]]:
    """At most `most` samples of a split, with images, texts and location; a bad one with its fault."""
    for where, sample in spread_over(manifest, most):
        card: dict[str, Any] = {"id": where, "type": manifest.split, "pred": None, "refs": [], "images": ()}
        if isinstance(sample, BadSample):
            yield card | {"fault": str(sample)}
            continue
        said = [*sample.captions, *(f"{turn['from']}: {turn['value']}" for turn in sample.conversations)]
        kind = sample.meta.get("change_type")
        yield card | {
            "id": " · ".join(filter(None, (sample.source, kind and str(kind), sample.id, where))),
            "pred": sample.instruction,
            "refs": said,
            "images": tuple(sample.images.values()),
            "roles": list(sample.images),
        }


def spread_over(manifest: Manifest, most: int) -> Iterator[tuple[str, Sample | BadSample]]:
    """At most `most` samples of a split, evenly spaced, each with its location; a bad one as its fault."""
    total = sum(shard.samples for shard in manifest.shards)
    wanted = {number * total // most for number in range(most)} if total > most else set(range(total))
    first = 0
    for shard in manifest.shards:
        places = sorted(number - first for number in wanted if first <= number < first + shard.samples)
        first += shard.samples
        if not places:
            continue
        path = manifest.path(shard)
        index = read_index(path, write=False)
        with path.open("rb") as file:
            for place in places:
                if place >= len(index):
                    continue  # a truncated shard; `onediff data check` names it
                where = f"{shard.name} {index.keys[place]}"
                try:
                    yield where, parse_sample(read_sample(file.fileno(), index[place]))
                except BadSample as bad:
                    yield where, bad
