"""What a frozen tower gives for the images of a data set, computed once and kept as shards.

A folder of features has a shard for every shard of samples, of the same name and with as many samples in the same order.
The member `<number>.features` of a sample holds raw little-endian numbers, `[views, layers, tokens, width]`; a sample whose
images cannot be read has `<number>.bad` with the reason instead. The manifest says under `features` which tower gave them,
for which preprocessing, and of which shards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onediff.config.difference import differences, flat
from onediff.config.model import VisionConfig
from onediff.data.cache import ShardCache
from onediff.data.manifest import Manifest, read_manifest
from onediff.data.sample import BadSample
from onediff.data.shards import Shards
from onediff.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""`training.precision` → the type of the numbers."""


@dataclass(frozen=True)
class FeatureFormat:
    """What features are of; training reads those whose format is its own, and no others."""

    layers: tuple[int, ...]
    """The tower's hidden states that are kept, shallow to deep."""
    tokens: int
    """Of a view."""
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
        """Raises UserError for a folder that holds no features."""
        try:
            fields = dict(manifest.extra["features"]["format"])
            return cls(**fields | {"layers": tuple(fields["layers"])})
        except (KeyError, TypeError):
            raise UserError(f"{manifest.folder}: holds no features; write them with 'onediff data features'") from None

    def fields(self) -> dict[str, Any]:
        """As a manifest has it."""
        return json.loads(json.dumps(asdict(self)))

    def tensor(self, data: bytes) -> Tensor:
        """`[views, layers, tokens, width]` out of the bytes of a member."""
        numbers = torch.frombuffer(bytearray(data), dtype=DTYPES[self.precision]) if data else torch.empty(0)
        return numbers.to(DTYPES[self.precision]).view(-1, len(self.layers), self.tokens, self.width)

    def check(self, wanted: FeatureFormat, folder: Path | str) -> None:
        """Raises UserError when features of this format in `folder` are not those that are `wanted`."""
        changed = differences(flat(self.fields()), flat(wanted.fields()))
        for key, (theirs, ours) in changed.items():
            what = "the tower's weights differ" if key == "tower" else f"{key} is {theirs}, not {ours}"
            raise UserError(
                f"{folder}: these features are not of this run's tower: {what}; write them again with 'onediff data "
                "features --overwrite', or leave `features` out of the data set"
            )


def read_layers(vision: VisionConfig, depth: int) -> tuple[int, ...]:
    """The hidden states of a tower of `depth` layers that the model reads, shallow to deep."""
    return tuple(sorted({*vision.levels, vision.output_level % (depth + 1)}))


class Features:
    """The features of one data set, by shard and place."""

    def __init__(self, format: FeatureFormat, shards: Shards) -> None:
        self.format, self.shards = format, shards

    @classmethod
    def open(cls, folder: Path | str, samples: Sequence[Any], cache: ShardCache) -> Features:
        """The features in `folder` of a data set with the shards `samples`. Raises UserError when they are of others."""
        manifest = read_manifest(folder)
        format = FeatureFormat.of_manifest(manifest)
        kept = {shard.name: shard for shard in manifest.shards}
        digests: dict[str, str] = manifest.extra["features"]["of"]
        for shard in samples:
            mine = kept.get(shard.name)
            if mine is None or mine.samples != shard.samples or digests.get(shard.name, "") != shard.sha256:
                raise UserError(
                    f"{folder}: holds no features of the shard {shard.name} as it is now; write them with 'onediff data "
                    "features'"
                )
        return cls(format, Shards(manifest.folder, [kept[shard.name] for shard in samples], cache))

    def read(self, shard: int, sample: int) -> Tensor:
        """`[views, layers, tokens, width]`. Raises BadSample for a sample whose images cannot be read."""
        members = self.shards.read(shard, sample)
        if "bad" in members:
            raise BadSample(*json.loads(members["bad"]))
        if "features" not in members:
            raise BadSample("truncated", "its features are missing")
        return self.format.tensor(members["features"])
