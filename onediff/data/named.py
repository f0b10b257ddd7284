"""Names for rows, from which any row can be made again.

`pairs/part-003.tar:000017` is the sample with the key 000017 in that shard of the data set `pairs`. `@2` after the key
means the third epoch, in which another caption may be drawn. The name of a coupled row is both names joined by `+`. If
several samples of a shard have the same key, `#17` names the sample with index 17 instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from onediff.data.lanes import SamplePlace
from onediff.data.rows import TokenRow
from onediff.data.sample import BadSample
from onediff.data.stream import Source, Stream
from onediff.errors import UserError


def name_of(stream: Stream, source: int, places: Sequence[SamplePlace]) -> str:
    """The name of the row made from the samples at `places` of a source."""
    return "+".join(_sample_name(stream.sources[source], place) for place in places)


def row_named(stream: Stream, name: str) -> TokenRow:
    """The row with this name, as the stream makes it. Raises UserError if it does not exist or cannot be read."""
    known = {source.name: number for number, source in enumerate(stream.sources)}
    parts = re.split(rf"\+(?=(?:{'|'.join(map(re.escape, known))})/)", name)
    if len(parts) != (2 if stream.couple else 1):
        wanted = "two joined by +, because this phase couples samples" if stream.couple else "one"
        raise UserError(f"--sample {name}: names {len(parts)} samples; give {wanted}")
    data_sets = [part.partition("/")[0] for part in parts]
    stranger = next((data_set for data_set in data_sets if data_set not in known), None)
    if stranger is not None:
        raise UserError(f"--sample {name}: no data set {stranger!r} in this phase, only {', '.join(known)}")
    if len(set(data_sets)) > 1:
        raise UserError(f"--sample {name}: both samples of a couple must be from the same data set")
    number = known[data_sets[0]]
    source = stream.sources[number]
    try:
        return stream.made(number, *(_place(source, part.partition("/")[2], name) for part in parts))
    except BadSample as bad:
        raise UserError(f"--sample {name}: cannot be used: {bad}") from None


def _sample_name(source: Source, place: SamplePlace) -> str:
    keys = source.shards.keys(place.shard)
    key = keys[place.sample]
    if keys.index(key) != place.sample:
        key = f"#{place.sample}"
    epoch = f"@{place.epoch}" if place.epoch else ""
    return f"{source.name}/{source.shards.names[place.shard]}:{key}{epoch}"


def _place(source: Source, text: str, name: str) -> SamplePlace:
    """The place in a source that `part-003.tar:000017@2` names."""
    shard = next((i for i, shard in enumerate(source.shards.names) if text.startswith(f"{shard}:")), None)
    if shard is None:
        raise UserError(f"--sample {name}: {source.shards.folder} has no such shard; write DATA-SET/SHARD.tar:KEY")
    key, keys = text.removeprefix(f"{source.shards.names[shard]}:"), source.shards.keys(shard)
    epoch = re.search(r"@(\d+)$", key) if key not in keys else None
    key = key[: epoch.start()] if epoch else key
    if key in keys:
        sample = keys.index(key)
    elif re.fullmatch(r"#\d+", key) and int(key[1:]) < len(keys):
        sample = int(key[1:])
    else:
        raise UserError(f"--sample {name}: {source.shards.names[shard]} has no sample with the key {key!r}")
    return SamplePlace(int(epoch[1]) if epoch else 0, shard, sample)
