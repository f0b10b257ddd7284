"""The cost per rank of ordering a very large data set: 10⁹ samples in 10⁵ uneven shards, 4,096 ranks.

    python benchmarks/lanes.py [--samples 1e9] [--shards 1e5] [--ranks 4096] [--lanes-per-rank 1] [--json FILE]
    python benchmarks/lanes.py --read [--json FILE]

Prints the set-up time, the time of a lookup in order and at random positions, the memory that a rank keeps, and the
difference in samples between ranks. With --read, measures the time to read a sample for a rank with 16 to 4,096 lanes, each
in its own shard, as lanes are. This writes 4,096 small shards (one gigabyte) to a temporary folder.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
from machine import machine

from onediff.data.lanes import Lanes
from onediff.data.manifest import build_manifest, write_manifest
from onediff.data.stream import Source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=float, default=1e9)
    parser.add_argument("--shards", type=float, default=1e5)
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--lanes-per-rank", type=int, default=1)
    parser.add_argument("--look-ups", type=int, default=20_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--read", action="store_true", help="read samples of many lanes instead")
    args = parser.parse_args()
    if args.read:
        found: dict[str, object] = {**reading(), "machine": machine("numpy")}
        told(found, args.json)
        return
    shards = uneven(int(args.samples), int(args.shards))
    count = args.ranks * args.lanes_per_rank
    mine = range(args.ranks - 1, count, args.ranks)  # the last rank's
    began = time.perf_counter()
    lanes = Lanes(shards, count, seed=0)
    for lane in mine:
        lanes.at(lane, 0)
    ready = time.perf_counter() - began
    in_order = [(mine[i % len(mine)], i // len(mine)) for i in range(args.look_ups)]
    random = np.random.default_rng(0)
    longest = lanes.length(mine[0])
    far = [(mine[i % len(mine)], int(random.integers(0, longest * 3))) for i in range(args.look_ups // 20)]
    seconds = timed(lanes, in_order), timed(lanes, far)
    tracemalloc.start()  # separately, because it distorts the times
    lanes = Lanes(shards, count, seed=0)
    timed(lanes, in_order[:: max(1, args.look_ups // 2000)] + far[:200])
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    totals = [sum(lanes.length(lane) for lane in range(rank, count, args.ranks)) for rank in range(args.ranks)]
    found = {
        "samples": lanes.samples,
        "shards": len(shards),
        "smallest_shard": int(shards.min()),
        "largest_shard": int(shards.max()),
        "ranks": args.ranks,
        "lanes": count,
        "seconds_to_first_sample": round(ready, 4),
        "microseconds_in_order": round(seconds[0] * 1e6, 1),
        "microseconds_at_random": round(seconds[1] * 1e6, 1),
        "kept_MB": round(kept / 1e6, 2),
        "peak_MB": round(peak / 1e6, 2),
        "ranks_differ_by_samples": max(totals) - min(totals),
        "sum_over_ranks": sum(totals),
        "machine": machine("numpy"),
    }
    told(found, args.json)
    assert sum(totals) == lanes.samples


def reading() -> dict[str, object]:
    """Microseconds to read one sample of 16 kB from each of that many lanes in turn."""
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = written(Path(scratch))
        for count in (16, 64, 256, 1024, 4096):
            source = Source.open("pairs", folder, count, seed=0, block=1024)
            rounds = 4096 // count
            read_all(source, count, rounds)  # the first visit of a shard reads its index
            began = time.process_time()
            read_all(source, count, rounds)
            found[f"microseconds_a_sample_{count}_lanes"] = round((time.process_time() - began) / 4096 * 1e6, 1)
    return found


def written(folder: Path) -> Path:
    """4,096 shards of sixteen pairs."""
    import tarfile

    image = b"\xff\xd8\xff" + bytes(8_000)
    record = b'{"id": "x", "source": "pairs", "task": "difference", "split": "train", "captions": ["a"]}'
    first = folder / "part-0000.tar"
    with tarfile.open(first, "w") as tar:
        for number in range(16):
            for suffix, data in (("before.jpg", image), ("after.jpg", image), ("json", record)):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    for number in range(1, 4096):
        shutil.copyfile(first, folder / f"part-{number:04d}.tar")
    write_manifest(build_manifest(folder))
    return folder


def read_all(source: Source, lanes: int, rounds: int) -> None:
    """The first samples of all lanes in turn."""
    for index in range(rounds):
        for lane in range(lanes):
            place = source.lanes.at(lane, index)
            source.shards.read(place.shard, place.sample)


def told(found: dict[str, object], file: Path | None) -> None:
    """Prints and stores the results."""
    for name, value in found.items():
        print(f"{name:<34} {value:,}" if isinstance(value, int) else f"{name:<34} {value}")
    if file:
        file.write_text(json.dumps(found, indent=2) + "\n")


def uneven(samples: int, shards: int) -> np.ndarray:
    """Sizes from one sample to twice the mean; the last completes the sum."""
    sizes = np.random.default_rng(0).integers(1, 2 * samples // shards, shards)
    sizes[-1] = max(1, sizes[-1] + samples - sizes.sum())
    return sizes


def timed(lanes: Lanes, places: list[tuple[int, int]]) -> float:
    """Seconds per lookup."""
    began = time.perf_counter()
    for lane, position in places:
        lanes.at(lane, position)
    return (time.perf_counter() - began) / len(places)


if __name__ == "__main__":
    main()
