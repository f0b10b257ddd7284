"""Processes the shards of finished data sets in parallel."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from data_prep.splits import KNOWN
from data_prep.workers import Workers, on_cluster
from data_prep.writer import cores
from onediff.config.addresses import below, is_url
from onediff.data.manifest import FILE, Manifest, Shard, build_manifest, parse_manifest, read_manifest
from onediff.data.remote import pieces, retried
from onediff.errors import UserError
from onediff.progress import progress

Found = TypeVar("Found")


def data_sets(folder: Path | str) -> list[Manifest]:
    """The data set in `folder`, or those in its subfolders (its splits). The shards need not exist.

    `folder` may be a URL, from which only manifests are fetched. Raises UserError if there is no data set.
    """
    if is_url(str(folder)):
        return _remote_data_sets(str(folder))
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    holders = [path for path in (folder, *sorted(folder.iterdir())) if path.is_dir() and not path.name.startswith(".")]
    found = [path for path in holders if (path / FILE).exists() or any(path.glob("[!.]*.tar"))]
    if not found:
        raise UserError(f"{folder}: no data set here; give a folder with {FILE} or tars, or the folder of its splits")
    if found[0] == folder:
        found = found[:1]
    return [parse_manifest(path / FILE) if (path / FILE).exists() else build_manifest(path) for path in found]


def _remote_data_sets(address: str) -> list[Manifest]:
    """The data set at a URL, or its splits by their usual names, since servers may not list folders."""
    found = []
    for place in (address, *(below(address, split) for split in KNOWN)):
        with suppress(UserError):
            found.append(read_manifest(place))
        if found and place == address:
            return found
    if not found:
        raise UserError(f"{address}: no {FILE} there, nor in {', '.join(KNOWN)} below it")
    return found


def place_of(manifest: Manifest, shard: Shard) -> Path:
    """The name of a shard in messages: its path, or its split and name if it is remote."""
    return Path(manifest.split) / shard.name if shard.url else manifest.path(shard)


@contextmanager
def on_disk(shard: Shard, path: Path) -> Iterator[Path]:
    """The shard at `path`, or a temporary copy of a remote one. Raises UserError."""
    if not shard.url:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="onediff-shard-") as folder:
        copy = Path(folder) / shard.name

        def fetch() -> None:
            with copy.open("wb") as file:
                file.writelines(pieces(shard.url))

        retried(shard.url, fetch)
        yield copy


def over_shards(
    work: Callable[[Path], Found], shards: Sequence[Path], processes: Workers, title: str
) -> Iterator[Found]:
    """`work(shard)` for every shard, in order, computed in several processes or on a cluster. `work` must be picklable."""
    if isinstance(processes, str):
        common = os.path.commonpath([path.resolve().parent for path in shards])
        yield from on_cluster(work, [path.resolve() for path in shards], processes, Path(common), title)
        return
    workers = min(processes or cores(), len(shards))
    with progress(len(shards), title, "shards") as bar:
        if workers <= 1:
            for shard in shards:
                yield work(shard)
                bar.update()
            return
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            try:
                for found in pool.map(work, shards):
                    yield found
                    bar.update()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
