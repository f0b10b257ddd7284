"""Going over the shards of finished data sets, in parallel."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

from data_prep.writer import cores
from onediff.data.manifest import FILE, Manifest, build_manifest, parse_manifest
from onediff.errors import UserError
from onediff.progress import progress

Found = TypeVar("Found")


def data_sets(folder: Path) -> list[Manifest]:
    """The data set in `folder`, or those in the folders below it (its splits). The shards need not be there.

    Raises UserError when there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    holders = [path for path in (folder, *sorted(folder.iterdir())) if path.is_dir() and not path.name.startswith(".")]
    found = [path for path in holders if (path / FILE).exists() or any(path.glob("[!.]*.tar"))]
    if not found:
        raise UserError(f"{folder}: no data set here; give a folder with {FILE} or tars, or the folder of its splits")
    if found[0] == folder:
        found = found[:1]
    return [parse_manifest(path / FILE) if (path / FILE).exists() else build_manifest(path) for path in found]


def over_shards(
    work: Callable[[Path], Found], shards: Sequence[Path], processes: int | None, title: str
) -> Iterator[Found]:
    """`work(shard)` for every shard, in order, computed in several processes. `work` must be picklable."""
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
