"""Images small enough to embed in a page, and where they come from."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from onediff.config.model import ImageConfig
from onediff.data.formats import open_image, to_rgb
from onediff.data.index import SampleSpan, read_index, read_sample
from onediff.data.manifest import read_manifest
from onediff.data.sample import BadSample, parse_sample

if TYPE_CHECKING:
    from PIL import Image

QUALITY = 72
HEAT_SIDE = 192
"""Pixels of the longer side of an image under an attention map: the size of the page's largest thumbnails."""


class PairImages(NamedTuple):
    """Encoded images of one pair, in any format that Pillow reads, and both again under their attention maps, if any."""

    before: bytes
    after: bytes
    map_before: bytes | None = None
    map_after: bytes | None = None


Source = Callable[[str], PairImages | None]
"""Maps an id to its images, or None if it has none."""


def shard_images(folder: Path, ids: Collection[str]) -> Source:
    """The images of `ids` from a data set folder with a manifest, read only when used. Raises UserError.

    Costs one small read per sample of the data set.
    """
    manifest = read_manifest(folder)
    places: dict[str, tuple[Path, SampleSpan]] = {}
    for shard in manifest.shards:
        path = manifest.path(shard)
        with path.open("rb") as file:
            for span in read_index(path):
                record = tuple(member for member in span.members if member.suffix == "json")
                # A sample that cannot be read has no images to show either.
                with contextlib.suppress(BadSample, ValueError, KeyError, TypeError):
                    pair = str(json.loads(read_sample(file.fileno(), SampleSpan(span.key, record))["json"])["id"])
                    if pair in ids:
                        places[pair] = path, span

    def images(pair: str) -> PairImages | None:
        if pair not in places:
            return None
        path, span = places[pair]
        with path.open("rb") as file, contextlib.suppress(BadSample):
            found = parse_sample(read_sample(file.fileno(), span), span.key).images
            return PairImages(found["before"], found["after"]) if "before" in found else None
        return None

    return images


def with_attention(images: Source, attention: Mapping[str, str], config: ImageConfig) -> Source:
    """`images`, and the same under the maps of `attention` (`attention_map.packed` texts by id), if any.

    `config` says which part of an image the model saw.
    """
    from onediff.evaluation.attention_map import laid_over, png, unpacked

    def overlaid(pair: str) -> PairImages | None:
        found = images(pair)
        if found is None or pair not in attention:
            return found
        before, after = (opened_small(data, HEAT_SIDE) for data in found[:2])
        if before is None or after is None:
            return found
        return PairImages(*found[:2], *map(png, laid_over((before, after), unpacked(attention[pair]), config)))

    return overlaid


def opened_small(data: bytes, side: int) -> Image.Image | None:
    """The image, upright and RGB, with its longer side at most `side` pixels; None if it cannot be decoded."""
    from PIL import Image

    try:
        with open_image(io.BytesIO(data)) as image:
            image.draft("RGB", (side, side))
            small = to_rgb(image)
            small.thumbnail((side, side))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return small


def thumbnail(data: bytes, side: int) -> str | None:
    """A data URI of the image with its longer side at most `side` pixels; None if it cannot be decoded."""
    small = opened_small(data, side)
    if small is None:
        return None
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
