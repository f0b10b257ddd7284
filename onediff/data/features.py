"""Precomputed features: a frozen tower's outputs for the images of a data set, stored as shards.

A folder of features has one shard for each shard of samples, with the same name and the same samples in the same order.
A sample's member `<number>.features` holds raw little-endian numbers, `[views, layers, tokens, width]`. A sample whose
images cannot be read has `<number>.bad` with the reason instead. The manifest records under `features` the tower, the
preprocessing and the shards of samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onediff.config.difference import differences, flat
from onediff.config.model import VisionConfig
from onediff.data.index import open_tar, read_index, read_sample
from onediff.data.manifest import Manifest, Shard, read_manifest
from onediff.data.sample import BadSample
from onediff.data.shards import Shards
from onediff.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""`training.precision` → the type of the numbers."""


@dataclass(frozen=True)
class FeatureFormat:
    """Identifies a tower and its preprocessing. Training reads only features whose format equals its own."""

    layers: tuple[int, ...]
    """The tower's stored hidden states, shallow to deep."""
    tokens: int
    """Tokens per view."""
    width: int
    precision: str
    """`fp32` or `bf16`."""
    image: Mapping[str, Any]
    """`model.vision.image`."""
    pixels: str
    """`data.pixels`."""
    tower: str
    """SHA-256 of the tower's weights in this precision."""

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> FeatureFormat:
        """The format recorded in a manifest. Raises UserError if the folder holds no features."""
        try:
            fields = dict(manifest.extra["features"]["format"])
            return cls(**fields | {"layers": tuple(fields["layers"])})
        except (KeyError, TypeError):
            raise UserError(f"{manifest.folder}: holds no features; write them with 'onediff data features'") from None

    def fields(self) -> dict[str, Any]:
        """The format as stored in a manifest."""
        return json.loads(json.dumps(asdict(self)))

    def tensor(self, data: bytes) -> Tensor:
        """`[views, layers, tokens, width]` from the bytes of a member."""
        numbers = torch.frombuffer(bytearray(data), dtype=DTYPES[self.precision]) if data else torch.empty(0)
        return numbers.to(DTYPES[self.precision]).view(-1, len(self.layers), self.tokens, self.width)

    def check(self, wanted: FeatureFormat, folder: Path | str) -> None:
        """Raises UserError if this format, of the features in `folder`, differs from the one `wanted`."""
        changed = differences(flat(self.fields()), flat(wanted.fields()))
        for key, (theirs, ours) in changed.items():
            what = "the tower's weights differ" if key == "tower" else f"{key} is {theirs}, not {ours}"
            raise UserError(
                f"{folder}: these features do not match this run's tower: {what}; rewrite them with 'onediff data "
                "features --overwrite', or remove `features` from the data set"
            )


def read_layers(vision: VisionConfig, depth: int) -> tuple[int, ...]:
    """The hidden states that the model reads from a tower of `depth` layers, shallow to deep."""
    return tuple(sorted({*vision.levels, vision.output_level % (depth + 1)}))


def identity(shard: Shard, folder: Path) -> str:
    """Tells a shard in `folder` from another that takes its place: the checksum in its manifest.

    Without one: a digest of the names and sizes of all its files and of the bytes of three samples, which costs a
    millisecond; for a remote shard, only its size. Raises UserError if the shard is missing.
    """
    if shard.sha256:
        return shard.sha256
    if shard.url:
        return f"{shard.bytes} bytes"
    path = folder / shard.name
    index = read_index(path)
    digest = hashlib.sha256(json.dumps([index.keys, index.suffixes]).encode())
    for column in (index.ends, index.suffix_of, index.sizes):
        digest.update(column.astype("<i8").tobytes())
    with open_tar(path) as file:
        # Files of the same names may have the same sizes too, as bitmaps do.
        for sample in range(0, len(index), len(index) // 3 + 1):
            for data in read_sample(file.fileno(), index[sample]).values():
                digest.update(data)
    return f"index {digest.hexdigest()}"


class Features:
    """The features of one data set, by shard and sample."""

    def __init__(self, format: FeatureFormat, shards: Shards) -> None:
        self.format, self.shards = format, shards

    @classmethod
    def open(cls, folder: Path | str, samples: Shards) -> Features:
        """Opens the features in `folder` of the shards `samples`. Raises UserError if they were made of other shards."""
        manifest = read_manifest(folder)
        format = FeatureFormat.of_manifest(manifest)
        kept = {shard.name: shard for shard in manifest.shards}
        made_of: dict[str, str] = manifest.extra["features"]["of"]
        for shard in samples.shards:
            mine = kept.get(shard.name)
            if (
                mine is None
                or mine.samples != shard.samples
                or made_of.get(shard.name) != identity(shard, samples.folder)
            ):
                raise UserError(
                    f"{folder}: holds no features of the current shard {shard.name}; write them with 'onediff data "
                    "features --overwrite'"
                )
        return cls(format, Shards(manifest.folder, [kept[shard.name] for shard in samples.shards], samples.cache))

    def read(self, shard: int, sample: int) -> Tensor:
        """`[views, layers, tokens, width]` of one sample. Raises BadSample if its images could not be read."""
        members = self.shards.read(shard, sample)
        if "bad" in members:
            raise BadSample(*json.loads(members["bad"]))
        if "features" not in members:
            raise BadSample("truncated", "its features are missing")
        return self.format.tensor(members["features"])
