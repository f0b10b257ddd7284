"""What is in a data set as one HTML page: its statistics, and samples with their images. The page needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import ImageOps

from data_prep.outputs import write_text
from data_prep.stats import Stats, show_stats
from onediff.data.formats import open_image
from onediff.data.index import read_index, read_sample
from onediff.data.manifest import Manifest
from onediff.data.sample import BadSample, Sample, parse_sample

PIXELS = 320
"""Longer side of an image on the page."""
STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:1.5em;max-width:80em}pre{background:#f4f4f4;padding:1em;overflow:auto}"
    "figure{display:inline-block;margin:0 1em 1.5em 0;vertical-align:top;width:42em;max-width:100%}"
    "img{max-width:49%;margin-right:1%}figcaption{margin-top:.3em}small{color:#666}.bad{color:#a00}"
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#222}}"
)


def write_gallery(path: Path, manifests: Sequence[Manifest], found: dict[str, Stats], most: int) -> None:
    """Writes the page with at most `most` samples of each split, spread evenly over it. Costs about 5 ms an image."""
    parts = [f'<!doctype html><meta charset="utf-8"><title>{text(manifests[0].name)}</title><style>{STYLE}</style>']
    parts.append(f"<h1>{text(manifests[0].name)}</h1><pre>{text(show_stats(found))}</pre>")
    for manifest in manifests:
        parts.append(f"<h2>{text(manifest.split)}</h2>")
        parts += [figure(where, sample) for where, sample in spread_over(manifest, most)]
    write_text(path, "\n".join(parts) + "\n")


def spread_over(manifest: Manifest, most: int) -> Iterator[tuple[str, Sample | BadSample]]:
    """Where, and what: at most `most` samples of a split at even distances; a bad one as what is wrong with it."""
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
                    continue  # A shard cut short; `onediff data check` names it.
                where = f"{shard.name} {index.keys[place]}"
                try:
                    yield where, parse_sample(read_sample(file.fileno(), index[place]))
                except BadSample as bad:
                    yield where, bad


def figure(where: str, sample: Sample | BadSample) -> str:
    """One sample: its images, what is said about it, and where it lies."""
    if isinstance(sample, BadSample):
        return (
            f'<figure><figcaption class="bad">{text(str(sample))}<br><small>{text(where)}</small></figcaption></figure>'
        )
    shown = "".join(image(role, data) for role, data in sample.images.items())
    said = [text(caption) for caption in sample.captions]
    said += [f"<b>{text(turn['from'])}</b> {text(turn['value'])}" for turn in sample.conversations]
    if sample.instruction:
        said.insert(0, f"<i>{text(sample.instruction)}</i>")
    kind = sample.meta.get("change_type", "")
    below = " · ".join(filter(None, (sample.source, str(kind), sample.id, where)))
    return f"<figure>{shown}<figcaption>{'<br>'.join(said)}<br><small>{text(below)}</small></figcaption></figure>"


def image(role: str, data: bytes) -> str:
    """A small copy of an image inside the page, or what is wrong with it."""
    try:
        with open_image(io.BytesIO(data)) as file:
            small = ImageOps.exif_transpose(file).convert("RGB")
    except Exception as error:  # Pillow raises a dozen kinds for damaged files.
        return f'<span class="bad">{text(role)}: {text(str(error))}</span>'
    small.thumbnail((PIXELS, PIXELS))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return f'<img alt="{text(role)}" src="data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}">'


def text(words: str) -> str:
    """Words for a page."""
    return html.escape(words)
