"""Writes shards from a function that makes sample i: in parallel, resumable, and with reproducible bytes.

The samples, shuffled if there is a seed, are split into chunks of `shard_samples`. One process makes a chunk, which becomes
one shard, several if it reaches `shard_bytes`, or none if all its samples are skipped. The result therefore does not depend
on the number of processes. Work happens in `DIR/.tmp-<split>/`, where a finished chunk leaves a record; after a kill, the
same call continues from the finished ones. At the end the folder is renamed to `DIR/<split>/`. Machines that share the
folder may each make a share of the chunks (`data_prep.share`); a call without a share then joins them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.chunks import Chunks, Made, Make, digest, files_of, together
from data_prep.processes import run_chunks
from data_prep.report import Report, Tally
from data_prep.share import Share
from data_prep.skipping import MaxSkipped
from data_prep.workers import Workers, on_cluster
from onediff.atomic import put_back, replace_folder, write_whole
from onediff.data.index import index_path
from onediff.data.manifest import FILE, Manifest, Shard, parse_manifest, read_manifest, write_manifest
from onediff.errors import UserError
from onediff.outputs import writing

ORDER = "order.npy"
"""The file with the order of all samples, which the first of several tasks computes for the others."""


@dataclass(frozen=True)
class WriteJob:
    """Identifies the samples and shards of a data set."""

    name: str
    split: str
    source: str
    licence: str
    inputs: str
    count: int
    shard_samples: int
    shard_bytes: int
    seed: int | None

    def digest(self) -> str:
        """SHA-256 of all fields."""
        return digest(vars(self))

    def order(self) -> NDArray[np.int64]:
        """The samples in the order in which they are split into chunks."""
        return shuffled(self.count, self.seed)

    def chunk(self, n: int, order: NDArray[np.int64]) -> list[int]:
        """The samples of chunk `n`."""
        found: list[int] = order[n * self.shard_samples : (n + 1) * self.shard_samples].tolist()
        return found

    def chunk_count(self) -> int:
        return -(-self.count // self.shard_samples)


def write_dataset(
    make: Make,
    count: int,
    out: Path | str,
    *,
    name: str,
    split: str,
    source: str = "",
    licence: str = "",
    inputs: str | None = None,
    shard_samples: int = 1000,
    shard_bytes: int = 1 << 30,
    seed: int | None = None,
    processes: Workers = None,
    strict: bool = False,
    max_skipped: MaxSkipped | None = None,
    overwrite: bool = False,
    progress: bool = True,
    extra: dict[str, Any] | None = None,
    share: Share | None = None,
    trusted: bool = False,
) -> Report:
    """Writes `make(0) … make(count - 1)` as the data set `out/<split>/`.

    `make` runs in worker processes, so it must be picklable and depend on nothing but its argument. It raises `BadSample`
    for a sample to skip and count (with `strict`, the first one stops the call). A sample without a key gets its number as
    key. The report counts the words in the list `meta["notes"]`. `inputs` is a digest of the samples' sources (default: of
    the pickled `make`); it lets a repeated call recognise its finished work. `seed` shuffles. `processes` defaults to the
    cores that this process may use, and may be the address of a Dask scheduler. `extra` goes into the manifest. With a
    `share`, makes and reports only its chunks, beside other tasks of the same job; the call without a share joins the data
    set, without looking at the images of `trusted` parts.

    Raises UserError if `out/<split>` holds something else without `overwrite`, another process writes it, no sample is left
    or more are skipped than `max_skipped` allows, the disk is full, or a worker dies.
    """
    if "/" in split or split.startswith("."):
        raise UserError(f"split {split!r}: must be a plain folder name")
    if count <= 0:
        raise UserError(f"{name} {split}: there is nothing to write")
    inputs = inputs if inputs is not None else hashlib.sha256(pickle.dumps(make)).hexdigest()
    job = WriteJob(name, split, source, licence, inputs, count, shard_samples, shard_bytes, seed)
    out, began = Path(out), time.monotonic()
    final, work = out / split, out / f".tmp-{split}"
    with writing(out):
        put_back(final)
    if (final / FILE).exists() and not overwrite:
        return finished(final, job, make if share is None else None, began)
    if final.exists() and not overwrite:
        raise UserError(f"{final}: exists and was not written by this command; remove it or choose another --out")
    with writing(out), claimed(work, job, beside_others=share is not None):
        state = Chunks(make, work, shard_bytes, strict)
        made = together(make_chunks(state, job, share, processes, progress, trusted))
        if share is not None:
            here = Manifest(work, name, split, tuple(made.shards))
            return Report(here, made.tally, made.tally.repeated(), time.monotonic() - began)
        manifest, tally = put_together(made, job, work, max_skipped, extra or {})
        replace_folder(work, final)
    return Report(read_manifest(final), tally, manifest.extra["repeated_images"], time.monotonic() - began)


def make_chunks(
    state: Chunks, job: WriteJob, share: Share | None, processes: Workers, progress: bool, trusted: bool
) -> list[Made]:
    """Makes this task's missing chunks; returns all its chunks."""
    mine = [n for n in range(job.chunk_count()) if share is None or share.has(n)]
    found = {n: made for n in mine if (made := state.load(n))} if trusted else {}
    unsure = [n for n in mine if n not in found]
    if unsure:
        saved = state.work / ORDER
        order = np.load(saved, mmap_mode="r") if saved.exists() else job.order()
        chunks = {n: job.chunk(n, order) for n in mine}
        todo = {n: chunks[n] for n in unsure if not state.is_current(n, chunks[n])}
        title = f"{job.name} {job.split}"
        if isinstance(processes, str):
            for _ in on_cluster(write_chunk, list(todo.items()), processes, state.work, title, "chunks", first=state):
                pass
        else:
            run_chunks(state, todo, sum(map(len, chunks.values())), processes or cores(), title, progress)
        for n in unsure:
            made = state.load(n)
            assert made is not None, f"chunk {n} was written and is gone"
            found[n] = made
    return [found[n] for n in mine]


def write_chunk(state: Chunks, chunk: tuple[int, list[int]]) -> None:
    """Writes one chunk, as a task on a cluster."""
    state.write(*chunk, lambda: None)


def finished(final: Path, job: WriteJob, make: Make | None, began: float) -> Report:
    """The report of a finished data set. Raises UserError if it was made from other inputs."""
    manifest = parse_manifest(final / FILE)
    files = manifest.extra.get("files")
    changed = False
    if make is not None and files:
        order = job.order()
        changed = files != digest([files_of(make, job.chunk(n, order)) for n in range(job.chunk_count())])
    if manifest.extra.get("recipe") != job.digest() or changed:
        raise UserError(
            f"{final}: was written from other inputs or options; remove it, add --overwrite, or choose another --out"
        )
    tally = Tally.of(manifest.extra["report"])
    return Report(read_manifest(final), tally, manifest.extra["repeated_images"], time.monotonic() - began)


def shuffled(count: int, seed: int | None) -> NDArray[np.int64]:
    """0 … count - 1, shuffled by `seed` identically on every machine and version; in order without a seed.

    Costs half a microsecond per number.
    """
    if seed is None:
        return np.arange(count)
    keys = np.frombuffer(b"".join(_keys(count, seed)), dtype=">u8").astype(np.uint64)
    order = np.argsort(keys)
    ordered = keys[order]
    if (ordered[1:] == ordered[:-1]).any():  # which of two equal keys comes first depends on the processor
        order = np.argsort(keys, kind="stable")
    return order


def _keys(count: int, seed: int) -> list[bytes]:
    """A hash of the seed with each number; the seed is hashed once."""
    begun, found = hashlib.blake2b(b"%d/" % seed, digest_size=8), []
    for number in range(count):
        key = begun.copy()
        key.update(b"%d" % number)
        found.append(key.digest())
    return found


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def locked(folder: Path, may_share: Callable[[], bool] = lambda: False, waiting: str = "") -> Iterator[int]:
    """Creates `folder` and locks it for this process or, if `may_share()`, together with others that share it.

    Yields the lock's descriptor. Raises UserError if another process keeps the lock for five seconds; if `waiting` is
    given, prints that line and waits instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        # The workers of a killed writer need a moment to notice that it is gone.
        deadline, told = time.monotonic() + 5, False
        while True:
            try:
                fcntl.flock(lock, (fcntl.LOCK_SH if may_share() else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline and not waiting:
                    raise UserError(f"{folder}: another process is writing here; wait for it or stop it") from error
                if waiting and not told:
                    print(waiting, file=sys.stderr, flush=True)
                    told = True
                time.sleep(0.1)
        try:
            yield lock.fileno()
        finally:
            # Only reusable parts are left.
            if folder.exists() and [path.name for path in folder.iterdir()] == ["lock"]:
                shutil.rmtree(folder)


@contextlib.contextmanager
def claimed(work: Path, job: WriteJob, beside_others: bool = False) -> Iterator[None]:
    """Locks the folder `work`, and empties it unless it holds parts of the same job; `beside_others` shares the lock."""
    mark = work / "job"

    def is_mine() -> bool:
        return mark.exists() and mark.read_text() == job.digest()

    with locked(work, lambda: beside_others and is_mine()) as lock:
        if not is_mine():
            for path in work.iterdir():
                if path.name != "lock":
                    path.unlink()
            if beside_others:  # the others need not shuffle again
                np.save(work / ORDER, job.order())
            write_whole(mark, job.digest())
        if beside_others:
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def put_together(
    made: Made, job: WriteJob, work: Path, max_skipped: MaxSkipped | None, extra: dict[str, Any]
) -> tuple[Manifest, Tally]:
    """Gives the shards of all chunks their final names and writes the manifest. Raises UserError if there are none."""
    parts, tally, files = made
    if not parts:
        for path in work.glob("[!l]*"):
            path.unlink()
        raise UserError(
            f"{job.name} {job.split}: none of {tally.read} samples can be used; the first: "
            f"{tally.details[0] if tally.details else 'there is none'}"
        )
    if max_skipped:
        max_skipped.check(tally, f"{job.name} {job.split}")
    shards = []
    for number, part in enumerate(parts):
        final = Shard(f"{job.name}-{job.split}-{number:06d}.tar", part.samples, part.bytes, part.sha256)
        source, target = work / part.name, work / final.name
        os.replace(index_path(source), index_path(target))
        os.replace(source, target)
        shards.append(final)
    found = {"inputs": job.inputs, "recipe": job.digest(), "repeated_images": tally.repeated(), **extra}
    if files:
        found["files"] = files
    found["report"] = {**tally.fields(), "prints": []}
    manifest = Manifest(work, job.name, job.split, tuple(shards), job.source, job.licence, found)
    write_manifest(manifest)
    keep = {FILE} | {name for shard in shards for name in (shard.name, index_path(Path(shard.name)).name)}
    for path in work.iterdir():
        if path.name not in keep:
            path.unlink()
    return manifest, tally
