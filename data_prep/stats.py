"""Statistics of a data set: counts, sizes of images, lengths of captions, kinds of change."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.report import table
from data_prep.shards import on_disk, over_shards, place_of
from data_prep.workers import Workers
from onediff.data.aspect import crop_remark, lost_to_crop
from onediff.data.formats import open_image
from onediff.data.index import read_index, read_sample
from onediff.data.manifest import Manifest, Shard
from onediff.data.sample import BadSample, image_suffix, parse_sample
from onediff.errors import UserError

if TYPE_CHECKING:
    from onediff.data.lengths import Lengths

COUNTED = ("kind", "source", "change_type", "format", "note", "bad")


@dataclass
class Stats:
    """Counts that add up over shards. `words` and `captions` are histograms: per caption, and per sample."""

    samples: int = 0
    bytes: int = 0
    words: Counter[int] = field(default_factory=Counter)
    captions: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    vocabulary: Counter[str] = field(default_factory=Counter)
    counted: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in COUNTED})
    lengths: Lengths | None = None
    """Lengths in a model's tokens, if a model was given."""

    def merge(self, other: Stats) -> None:
        self.samples += other.samples
        self.bytes += other.bytes
        for name in ("words", "captions", "sizes", "vocabulary"):
            getattr(self, name).update(getattr(other, name))
        for name, counts in other.counted.items():
            self.counted[name].update(counts)

    def fields(self) -> dict[str, Any]:
        """As JSON."""
        sides = Counter({max(size): 0 for size in self.sizes})
        for size, number in self.sizes.items():
            sides[max(size)] += number
        return {
            "samples": self.samples,
            "bytes": self.bytes,
            "captions": sum(self.words.values()),
            "captions_per_sample": spread(self.captions),
            "words_per_caption": spread(self.words),
            "longer_side": spread(sides),
            "different_words": len(self.vocabulary),
            "words": dict(self.vocabulary.most_common(20)),
            "lost_to_crop": round(lost_to_crop(self.sizes), 4),
            "sizes": {f"{w}x{h}": number for (w, h), number in self.sizes.most_common(10)},
            **{name: dict(counts.most_common()) for name, counts in self.counted.items()},
            **({"lengths": self.lengths.fields()} if self.lengths else {}),
        }


def spread(histogram: Counter[int]) -> dict[str, float]:
    """Minimum, median, mean, 95th percentile and maximum of a histogram; empty if the histogram is."""
    total = sum(histogram.values())
    if not total:
        return {}

    def at(part: float) -> int:
        below = 0
        for value in sorted(histogram):
            below += histogram[value]
            if below >= part * total:
                return value
        return max(histogram)

    mean = sum(value * number for value, number in histogram.items()) / total
    return {"min": at(0), "median": at(0.5), "mean": round(mean, 2), "p95": at(0.95), "max": max(histogram)}


def shard_stats(path: Path, known: Mapping[Path, Shard]) -> Stats:
    """The statistics of one shard; reads every sample, and the header of each image.

    Raises UserError if the shard is missing.
    """
    stats = Stats()
    if not known[path].url and not path.is_file():
        raise UserError(f"{path}: the shard is missing; 'onediff data check' lists all missing shards")
    with on_disk(known[path], path) as place, place.open("rb") as file:
        stats.bytes = place.stat().st_size
        for span in read_index(place, write=False):
            stats.samples += 1
            try:
                add_sample(stats, read_sample(file.fileno(), span))
            except BadSample as bad:
                stats.counted["bad"][bad.kind] += 1
    return stats


def add_sample(stats: Stats, members: dict[str, bytes]) -> None:
    sample = parse_sample(members)
    kind = "pair" if sample.is_pair else "single" if sample.images else "text"
    answers = sample.captions or tuple(turn["value"] for turn in sample.conversations if turn["from"] == "gpt")
    stats.counted["kind"][f"{kind}, conversation" if sample.conversations else kind] += 1
    stats.counted["source"][sample.source] += 1
    stats.counted["note"].update(sample.meta.get("notes", ()))
    if "change_type" in sample.meta:
        stats.counted["change_type"][str(sample.meta["change_type"])] += 1
    stats.captions[len(answers)] += 1
    for answer in answers:
        words = answer.lower().split()
        stats.words[len(words)] += 1
        stats.vocabulary.update(word.strip(".,;:!?\"'()") for word in words)
    for data in sample.images.values():
        stats.counted["format"][str(image_suffix(data))] += 1
        try:
            with open_image(io.BytesIO(data)) as image:
                stats.sizes[image.size] += 1
        except Exception as error:
            raise BadSample("bad_image", f"the image cannot be opened: {error}") from error


def data_set_stats(manifests: Sequence[Manifest], processes: Workers = None) -> dict[str, Stats]:
    """Statistics per split."""
    shards = [(manifest, shard) for manifest in manifests for shard in manifest.shards]
    found = {manifest.split: Stats() for manifest in manifests}
    known = {place_of(manifest, shard): shard for manifest, shard in shards}
    done = over_shards(partial(shard_stats, known=known), list(known), processes, "reading")
    for (manifest, _), stats in zip(shards, done, strict=True):
        found[manifest.split].merge(stats)
    return found


def show_stats(found: dict[str, Stats]) -> str:
    """The statistics as text: a table of splits, then the counts of each split."""
    fields = {split: stats.fields() for split, stats in found.items()}
    rows = [
        [split, f["samples"], f"{f['bytes'] / 1e6:,.1f}", f["captions"], f["different_words"]]
        for split, f in fields.items()
    ]
    text = [table(rows, ("split", "samples", "MB", "captions", "different words"))]
    for split, f in fields.items():
        text.append(f"\n{split}")
        for name in ("captions_per_sample", "words_per_caption", "longer_side"):
            if f[name]:
                text.append(f"  {name}: " + ", ".join(f"{key} {value:g}" for key, value in f[name].items()))
        for name in ("sizes", *COUNTED):
            if f[name]:
                text.append(
                    f"  {name}: " + ", ".join(f"{key} {number:,}" for key, number in list(f[name].items())[:12])
                )
        if remark := crop_remark(found[split].sizes):
            text.append(f"  {remark}")
        if lengths := found[split].lengths:
            text += [f"  {line}" for line in lengths.lines()]
    return "\n".join(text)
