"""The manifest of a split: its tar shards with their sizes and checksums, their source and licence."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onediff.atomic import write_whole
from onediff.config.addresses import is_url
from onediff.data.remote import PLAIN_URL, fetched, file_in
from onediff.errors import UserError

SCHEMA = 1
FILE = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One tar: its file name, its number of samples and bytes, and its SHA-256 in hex ("" if unknown).

    `url` is its address if it is not in the manifest's folder.
    """

    name: str
    samples: int
    bytes: int
    sha256: str = ""
    url: str = ""

    def fields(self) -> dict[str, Any]:
        """The entry as stored in the manifest."""
        return {name: value for name, value in vars(self).items() if value or name != "url"}


@dataclass(frozen=True)
class Manifest:
    """One split of a data set. `folder` is where it was read from; `extra` holds the file's other keys."""

    folder: Path
    name: str
    split: str
    shards: tuple[Shard, ...]
    source: str = ""
    licence: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def path(self, shard: Shard) -> Path:
        return self.folder / shard.name


def read_manifest(folder: Path | str) -> Manifest:
    """The manifest of `folder`, checked against the file sizes, or built from the tars if there is none.

    For a URL, fetches only the manifest. Raises UserError if the folder or a shard is missing, there are no samples, or a
    size differs.
    """
    if is_url(str(folder)):
        return _fetched_manifest(str(folder))
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of shards; write it with 'onediff data convert' or fix the path")
    file = folder / FILE
    manifest = parse_manifest(file) if file.exists() else build_manifest(folder)
    if not manifest.samples:
        raise UserError(f"{file}: the data set has no samples; write it again")
    for shard in manifest.shards:
        if shard.url:
            continue
        path = manifest.path(shard)
        if not path.is_file():
            raise UserError(f"{path}: the shard is missing, though {FILE} names it; fetch it or write the set again")
        size = path.stat().st_size
        if size != shard.bytes:
            raise UserError(f"{path}: {size} bytes, but {FILE} says {shard.bytes}; fetch it or write the set again")
    return manifest


def _fetched_manifest(folder: str) -> Manifest:
    """The manifest at a URL, with the URL of each shard filled in. Raises UserError."""
    url = file_in(folder, FILE)
    manifest = _parsed(fetched(url), url, Path())
    shards = tuple(replace(shard, url=shard.url or file_in(folder, shard.name)) for shard in manifest.shards)
    return replace(manifest, shards=shards)


def parse_manifest(file: Path) -> Manifest:
    """Reads `manifest.json` without looking at the shards. Raises UserError if it is not a valid manifest."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    return _parsed(text, str(file), file.parent)


def _parsed(text: bytes, file: str, folder: Path) -> Manifest:
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise TypeError("not an object")
        schema = fields.pop("schema", None)
        if schema != SCHEMA:
            raise UserError(f"{file}: schema {schema!r}, but this version of onediff reads schema {SCHEMA}")
        shards = tuple(
            Shard(str(s["name"]), int(s["samples"]), int(s["bytes"]), str(s.get("sha256", "")), str(s.get("url", "")))
            for s in fields.pop("shards")
        )
        declared = int(fields.pop("samples"))
        manifest = Manifest(
            folder,
            str(fields.pop("name")),
            str(fields.pop("split")),
            shards,
            str(fields.pop("source", "")),
            str(fields.pop("licence", "")),
            fields,
        )
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not a manifest ({type(error).__name__}: {error}); remove it to read the tars without it"
        ) from error
    for shard in shards:
        if Path(shard.name).name != shard.name:
            raise UserError(f"{file}: shard {shard.name!r} must be a file name in the same folder")
        if shard.url and not PLAIN_URL.fullmatch(shard.url):
            raise UserError(
                f"{file}: {shard.url!r} is not a plain https, s3, gs, az or hf address; a pipe: is allowed only in the "
                "configuration, as the path of the data set"
            )
    if declared != manifest.samples:
        raise UserError(f"{file}: says {declared} samples, but its shards add up to {manifest.samples}")
    return manifest


def build_manifest(folder: Path | str, checksums: bool = False) -> Manifest:
    """Builds a manifest for a folder of tars, counting samples, and with SHA-256 sums if `checksums`.

    Raises UserError if the folder holds no tar; the message names its splits if it has any.
    """
    from onediff.data.index import read_index  # needs numpy; reading an existing manifest on a login node does not

    folder = Path(folder)
    tars = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not tars:
        below = sorted(path.parent.name for path in folder.glob(f"[!.]*/{FILE}"))
        hint = f"it holds the splits {', '.join(below)}: name one, such as {folder / below[0]}" if below else "write it"
        raise UserError(f"{folder}: no tar shards in this folder; {hint}")
    shards = tuple(
        Shard(tar.name, len(read_index(tar)), tar.stat().st_size, file_sha256(tar) if checksums else "") for tar in tars
    )
    return Manifest(folder, folder.parent.name or folder.name, folder.name, shards)


def write_manifest(manifest: Manifest) -> Path:
    """Writes `manifest.json` to the manifest's folder atomically; returns its path."""
    fields = {
        "schema": SCHEMA,
        "name": manifest.name,
        "split": manifest.split,
        "source": manifest.source,
        "licence": manifest.licence,
        "samples": manifest.samples,
        **manifest.extra,
        "shards": [shard.fields() for shard in manifest.shards],
    }
    path = manifest.folder / FILE
    write_whole(path, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
    return path


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
