"""Data sets made from others: selected samples, the facts about them, and their copies in new shards."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.chunks import digest
from data_prep.ids import unique_ids
from data_prep.near import image_hash
from data_prep.report import Report
from data_prep.shards import over_shards
from data_prep.workers import Workers
from data_prep.writer import write_dataset
from onediff.data.formats import open_image
from onediff.data.index import Index, build_index, read_index, read_sample
from onediff.data.manifest import Manifest, Shard
from onediff.data.sample import BadSample, Sample, parse_sample
from onediff.errors import UserError

Place = tuple[int, int]
"""The number of a shard, and of a sample in it."""


@dataclass(frozen=True)
class SelectedSamples:
    """Makes sample `i` of a data set made from others. Picklable; opens the shards in the process that runs it."""

    shards: tuple[Path, ...]
    places: NDArray[np.int64]
    """`[samples, 2]`."""
    renamed: frozenset[Place] = frozenset()
    """Samples whose keys occur more than once."""
    split: str = ""
    """The split of all samples, if it is not their own."""
    licences: tuple[str, ...] = ()
    """The licence for samples that name none, by shard."""
    ids: Mapping[Place, str] = field(default_factory=dict)
    """The new ids of samples whose own id belongs to other images."""
    _open: dict[int, tuple[int, Index]] = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        return SelectedSamples, (self.shards, self.places, self.renamed, self.split, self.licences, self.ids)

    def new_names(self) -> list[Any]:
        """The samples whose keys or ids change, as JSON."""
        return [sorted(self.renamed), *([sorted(self.ids.items())] if self.ids else [])]

    def __call__(self, i: int) -> Sample:
        shard, place = map(int, self.places[i])
        if shard not in self._open:
            if len(self._open) > 64:  # descriptors
                os.close(self._open.pop(next(iter(self._open)))[0])
            self._open[shard] = os.open(self.shards[shard], os.O_RDONLY), build_index(self.shards[shard])
        fd, index = self._open[shard]
        sample = parse_sample(read_sample(fd, index[place]), index[place].key)
        key = f"{sample.key}-{i}" if (shard, place) in self.renamed else sample.key
        licence = self.licences[shard] if self.licences else ""
        meta = {"licence": licence, **sample.meta} if licence else sample.meta
        id = self.ids.get((shard, place), sample.id)
        if id != sample.id and isinstance(notes := meta.get("notes", []), list):
            meta = {**meta, "notes": [*notes, "renamed_id"]}
        return replace(sample, id=id, key=key, split=self.split or sample.split, meta=meta)


@dataclass(frozen=True)
class SampleFacts:
    """The facts about one sample."""

    place: Place
    split: str
    key: str
    columns: Mapping[str, Any]
    """Values for conditions: the fields of the record and of its `meta`, `caption`, `words`, `width`, `height`."""
    images: tuple[bytes, ...] = ()
    """Fingerprints."""
    hashes: tuple[int, ...] = ()
    """Perceptual hashes."""

    @property
    def pair(self) -> tuple[bytes, ...]:
        """The fingerprints of a pair's images; none for other samples."""
        return self.images if len(self.images) == 2 else ()


@dataclass
class ShardPool:
    """The shards from which samples are selected."""

    manifests: Sequence[Manifest]
    shards: list[tuple[Manifest, Shard]] = field(init=False)

    def __post_init__(self) -> None:
        self.shards = [(manifest, shard) for manifest in self.manifests for shard in manifest.shards]
        for manifest, shard in self.shards:
            if shard.url or not manifest.path(shard).is_file():
                raise UserError(
                    f"{manifest.folder}: shard {shard.name} is not on this machine; fetch the data set first"
                )

    def known(self, processes: Workers, sizes: bool = False, hashes: bool = False) -> list[SampleFacts]:
        """Reads the record of every sample; with `sizes` also the headers of its images, and with `hashes` all pixels.

        Raises UserError if a sample cannot be read.
        """
        paths = [manifest.path(shard) for manifest, shard in self.shards]
        done = over_shards(partial(_shard_samples, sizes=sizes, hashes=hashes), paths, processes, "reading")
        return [
            replace(known, place=(number, known.place[1]), split=manifest.split)
            for number, ((manifest, _), found) in enumerate(zip(self.shards, done, strict=True))
            for known in found
        ]

    def write(
        self,
        chosen: Mapping[str, Sequence[SampleFacts]],
        out: Path,
        name: str = "",
        note_licence: bool = False,
        **options: Any,
    ) -> list[Report]:
        """Writes `out/<split>/` for every split; `options` go to `write_dataset`. Raises UserError."""
        if any(manifest.folder.resolve().is_relative_to(out.resolve()) for manifest in self.manifests):
            raise UserError(f"{out}: holds the data set itself; give another folder with --out")
        paths = tuple(manifest.path(shard) for manifest, shard in self.shards)
        reports = []
        for split, samples in chosen.items():
            if not samples:
                continue
            licences = tuple(manifest.licence for manifest, _ in self.shards) if note_licence else ()
            places = np.array([known.place for known in samples], dtype=np.int64)
            ids = unique_ids((known.place, str(known.columns["id"]), known.pair) for known in samples)
            copies = SelectedSamples(paths, places, _repeated(samples), split, licences, ids)
            used = {self.shards[known.place[0]][0].folder for known in samples}
            manifests = [manifest for manifest in self.manifests if manifest.folder in used]
            counts = Counter(self.shards[known.place[0]][0].licence for known in samples)
            reports.append(
                write_dataset(
                    copies,
                    len(samples),
                    out,
                    name=name or manifests[0].name,
                    split=split,
                    source="; ".join(dict.fromkeys(m.source for m in manifests if m.source)),
                    licence="; ".join(dict.fromkeys(m.licence for m in manifests if m.licence)),
                    inputs=self.digest(copies),
                    extra={"licences": {licence or "not stated": number for licence, number in counts.items()}},
                    **options,
                )
            )
        if not reports:
            raise UserError(f"{out}: no sample is left")
        return reports

    def images(self, samples: Sequence[SampleFacts]) -> Iterator[Sequence[bytes]]:
        """The encoded images of each sample."""
        places = np.array([known.place for known in samples], dtype=np.int64)
        read = SelectedSamples(tuple(manifest.path(shard) for manifest, shard in self.shards), places)
        return (tuple(read(i).images.values()) for i in range(len(samples)))

    def digest(self, copies: SelectedSamples) -> str:
        """Identifies these copies."""
        shards = [(shard.name, shard.bytes, shard.sha256) for _, shard in self.shards]
        chosen = hashlib.sha256(copies.places.tobytes()).hexdigest()
        return digest([shards, chosen, *copies.new_names(), copies.split, copies.licences])


def _repeated(samples: Sequence[SampleFacts]) -> frozenset[Place]:
    seen: set[str] = set()
    repeated = [known.place for known in samples if known.key in seen or seen.add(known.key)]  # type: ignore[func-returns-value]
    return frozenset(repeated)


def _shard_samples(path: Path, sizes: bool, hashes: bool) -> list[SampleFacts]:
    found = []
    with path.open("rb") as file:
        for place, span in enumerate(read_index(path, write=False)):
            try:
                found.append(_known(parse_sample(read_sample(file.fileno(), span), span.key), place, sizes, hashes))
            except BadSample as bad:
                raise UserError(
                    f"{path} {span.key}: {bad.reason}; 'onediff data repair' writes a copy without it"
                ) from bad
    return found


def _known(sample: Sample, place: int, sizes: bool, hashes: bool) -> SampleFacts:
    columns = {**sample.meta, "id": sample.id, "source": sample.source, "task": sample.task, "split": sample.split}
    columns |= {"key": sample.key, "instruction": sample.instruction or "", "captions": len(sample.captions)}
    answers = sample.captions or tuple(turn["value"] for turn in sample.conversations if turn["from"] == "gpt")
    columns |= {"caption": answers[0], "words": len(answers[0].split())}
    images = sample.images
    if sizes and images:
        try:
            with open_image(io.BytesIO(next(iter(images.values())))) as image:
                columns["width"], columns["height"] = image.size
        except Exception as error:  # Pillow raises a dozen different exceptions for damaged files
            raise BadSample("bad_image", f"an image cannot be opened: {error}") from error
    prints = tuple(hashlib.blake2b(data, digest_size=16).digest() for data in images.values())
    try:
        own = tuple(image_hash(data) for data in images.values()) if hashes else ()
    except Exception as error:
        raise BadSample("bad_image", f"an image cannot be decoded: {error}") from error
    return SampleFacts((0, place), sample.split, sample.key, columns, prints, own)
