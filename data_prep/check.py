"""Verifies finished data sets: every byte, record and image, and repeated samples.

A fault makes a sample or shard unusable, or a score wrong; a remark is worth knowing. Both name the shard and the key.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.images import MAX_PIXELS
from data_prep.shards import on_disk, over_shards, place_of
from data_prep.workers import Workers
from onediff.data.formats import jpeg_fault, open_image
from onediff.data.index import build_index, index_path, load_index, read_sample
from onediff.data.manifest import Manifest, Shard, file_sha256
from onediff.data.sample import BadSample, Sample, parse_sample
from onediff.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One fault or remark. `place` is the sample's number in its shard, or -1 for the whole shard."""

    kind: str
    shard: str
    key: str
    reason: str
    place: int = -1
    is_fault: bool = True

    def __str__(self) -> str:
        where = f"{self.shard} {self.key}" if self.key else self.shard
        return f"{'fault' if self.is_fault else 'remark'}: {self.kind}: {where}: {self.reason}"


@dataclass
class Mark:
    """Fingerprints of one good sample: of its images, and of images and texts together."""

    key: str
    id: str
    place: int
    images: bytes
    whole: bytes
    each: tuple[bytes, ...] = ()
    """For a pair, the fingerprints of before and after."""


@dataclass
class ShardCheck:
    """The outcome for one shard."""

    path: Path
    samples: int = 0
    findings: list[Finding] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def add(self, kind: str, reason: str, key: str = "", place: int = -1, is_fault: bool = True) -> None:
        self.findings.append(Finding(kind, str(self.path), key, reason, place, is_fault))


@dataclass
class CheckReport:
    """The outcome for one or several splits."""

    checks: dict[str, list[ShardCheck]]

    @property
    def findings(self) -> list[Finding]:
        return [finding for checks in self.checks.values() for check in checks for finding in check.findings]

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_fault]

    def counts(self) -> Counter[str]:
        return Counter(finding.kind for finding in self.findings)

    def fields(self) -> dict[str, Any]:
        return {
            "samples": {split: sum(check.samples for check in checks) for split, checks in self.checks.items()},
            "counts": dict(sorted(self.counts().items())),
            "findings": [vars(finding) for finding in self.findings],
        }


def check_data_sets(manifests: Sequence[Manifest], processes: Workers = None, pixels: bool = True) -> CheckReport:
    """Checks every shard, then looks for repeated samples within and across splits. `pixels` decodes every image."""
    shards = [(manifest, shard) for manifest in manifests for shard in manifest.shards]
    known = {place_of(manifest, shard): (shard, manifest.split) for manifest, shard in shards}
    work = partial(check_shard, known=known, pixels=pixels)
    done = list(over_shards(work, list(known), processes, "checking"))
    checks: dict[str, list[ShardCheck]] = {manifest.split: [] for manifest in manifests}
    for (manifest, _), check in zip(shards, done, strict=True):
        checks[manifest.split].append(check)
    for split in checks.values():
        find_repeats(split)
    find_leakage(checks)
    return CheckReport(checks)


def check_shard(path: Path, known: dict[Path, tuple[Shard, str]], pixels: bool) -> ShardCheck:
    """Checks one shard on its own; a remote one is fetched first."""
    shard, split = known[path]
    check = ShardCheck(path)
    if not shard.url and not path.is_file():
        check.add("missing_shard", "the manifest lists it, but there is no such file")
        return check
    try:
        with on_disk(shard, path) as file:
            check_file(check, file, shard)
            check_samples(check, file, split, pixels)
    except UserError as error:
        check.add("missing_shard", str(error))
    return check


def check_file(check: ShardCheck, path: Path, shard: Shard) -> None:
    """Compares the shard's file with its manifest and its index."""
    if path.stat().st_size != shard.bytes:
        check.add("wrong_size", f"{path.stat().st_size} bytes, but the manifest says {shard.bytes}")
    elif shard.sha256 and file_sha256(path) != shard.sha256:
        check.add("wrong_checksum", "SHA-256 differs from the manifest's: the file was changed or damaged")
    index = build_index(path)
    check.samples = len(index)
    for line in index.damage:
        check.add("damaged_tar", line)
    if len(index) != shard.samples:
        check.add("wrong_count", f"{len(index)} samples, but the manifest says {shard.samples}")
    if shard.url:
        return  # its reader makes the index
    try:
        stored = load_index(index_path(path))
        if stored.facts != index.facts or list(stored) != list(index):
            check.add("stale_index", "the index beside it describes another tar; rebuild it with 'onediff data index'")
    except FileNotFoundError:
        check.add("no_index", "no index beside it, so it is built at every start", is_fault=False)
    except (ValueError, KeyError) as error:
        check.add("stale_index", f"the index beside it cannot be read ({error}); rebuild it with 'onediff data index'")


def check_samples(check: ShardCheck, path: Path, split: str, pixels: bool) -> None:
    """Checks every record and image of a shard."""
    with path.open("rb") as file:
        for place, span in enumerate(build_index(path)):
            try:
                sample = parse_sample(read_sample(file.fileno(), span), span.key)
                if sample.split != split:
                    raise BadSample("wrong_split", f"the record says split {sample.split!r}, the manifest {split!r}")
                for role, data in sample.images.items():
                    check_image(role, data, pixels)
                check.marks.append(mark_of(sample, place))
            except BadSample as bad:
                check.add(bad.kind, bad.reason, span.key, place)


def check_image(role: str, data: bytes, pixels: bool) -> None:
    """Raises `BadSample` unless the image can be decoded (its header only, unless `pixels`)."""
    try:
        with open_image(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadSample("too_large", f"image {role!r} has {image.width} × {image.height} pixels")
            if pixels:
                image.load()
                if fault := jpeg_fault(data):
                    raise BadSample("bad_image", f"image {role!r} is incomplete: {fault}")
    except BadSample:
        raise
    except Exception as error:
        raise BadSample("bad_image", f"image {role!r} cannot be decoded: {error}") from error


def mark_of(sample: Sample, place: int) -> Mark:
    """Fingerprints of a sample; a pair in reverse order has the same images."""
    prints = {role: hashlib.blake2b(data, digest_size=16).digest() for role, data in sample.images.items()}
    images = sorted(prints.values())
    seen = hashlib.blake2b(b"".join(images), digest_size=16)
    whole = seen.copy()
    words = (sorted(sample.images), sample.captions, sample.conversations, sample.instruction)
    whole.update(repr(words).encode())
    each = (prints["before"], prints["after"]) if sample.is_pair else ()
    if each:
        whole.update(each[0])
    return Mark(sample.key, sample.id, place, seen.digest() if images else b"", whole.digest(), each)


def find_repeats(checks: Sequence[ShardCheck]) -> None:
    """Adds a fault for each key that occurs twice in the split, for each sample that repeats another, and for each pair
    whose id belongs to other images: the captions of both would be references of one pair."""
    keys: dict[str, tuple[Path, Mark]] = {}
    wholes: dict[bytes, tuple[Path, Mark]] = {}
    ids: dict[str, tuple[Path, Mark]] = {}
    for check in checks:
        for mark in check.marks:
            this = (check.path, mark)
            twin, namesake = wholes.setdefault(mark.whole, this), keys.setdefault(mark.key, this)
            if twin is not this:
                check.add("duplicate", f"same images and texts as {shown(*twin)}", mark.key, mark.place)
            elif namesake is not this:
                check.add("repeated_key", f"same key as {shown(*namesake)}", mark.key, mark.place)
            other, first = ids.setdefault(mark.id, this) if mark.each else this
            if first.each != mark.each:
                reason = f"same id {mark.id!r} as {shown(other, first)}, which has other images"
                check.add("repeated_id", reason, mark.key, mark.place)


def shown(path: Path, mark: Mark) -> str:
    return f"{path.name} {mark.key} (sample {mark.place})"


def find_leakage(checks: dict[str, list[ShardCheck]]) -> None:
    """Adds a fault for images that `train` shares with another split, and a remark for those that other splits share.

    A single image that a pair of `train` shares with a pair of another split is also a remark.
    """
    first: dict[bytes, tuple[str, str]] = {}
    single: dict[bytes, tuple[str, str]] = {}
    for split in sorted(checks, key=lambda name: name == "train"):
        for check in checks[split]:
            for mark in check.marks:
                other, there = first.setdefault(mark.images, (split, shown(check.path, mark)))
                if mark.images and other != split:
                    reason = f"its images are also in split {other}, as {there}"
                    check.add("leakage", reason, mark.key, mark.place, is_fault=split == "train")
                elif split != "train":
                    for image in mark.each:
                        single.setdefault(image, (split, shown(check.path, mark)))
                elif where := next((single[image] for image in mark.each if image in single), None):
                    reason = f"one of its images is also in split {where[0]}, in {where[1]}"
                    check.add("shared_image", reason, mark.key, mark.place, is_fault=False)
