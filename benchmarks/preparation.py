"""Converts a table of a million pairs to shards: in one process, and in 64 tasks that share the work.

    python benchmarks/preparation.py [--pairs 1000000] [--whole 100000] [--tasks 64] [--json FILE]

Every image has its own path, but the files are hard links to a few small JPEG files in the page cache, so that the software
is measured and not the disk. The plan and one share of --tasks are made for all --pairs. One process converts the first
--whole pairs, and the time is scaled to --pairs, so that 5 GB of disk are enough; the same pairs are joined, in the number
of parts that all pairs would give. Every way runs in its own process on one core. Times are processor times, which other
work on the machine distorts less than wall-clock time. The limit calls `stat` on each file, reads it and writes it to one
large file. `speed-up` is the time of one process divided by that of a task, by that of the plan and a task, and by that of
the whole chain that a user waits for: the plan, a task, joining. The time of the plan is the additional time of the first
task. Times are medians of three; joining is timed once. img2dataset, if its command is given, fetches images from a server
on this machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from machine import machine
from PIL import Image
from shard_writing import photographs, with_img2dataset

LIMIT = """
import csv, os, sys
folder = sys.argv[1]
with open(folder + "/some.csv") as table, open(sys.argv[2], "wb") as out:
    for row in csv.DictReader(table):
        for role in ("before", "after"):
            path = f"{folder}/{row[role]}"
            os.stat(path)
            with open(path, "rb") as file:
                out.write(file.read())
"""
COMMAND = "from onediff.cli import main; code = main(sys.argv[1:])"
TOLD = """
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, file=open({0!r}, "w"))
"""


LINKS = 50_000
"""Hard links per file; ext4 allows 65,000."""


def make_source(folder: Path, pairs: int, whole: int) -> None:
    """Writes tables of that many pairs, with about 5 kB per image and a thousand pairs per folder."""
    files: list[Path] = []
    for number, data in enumerate(photographs()):
        if number * LINKS >= 2 * pairs + LINKS:
            break
        image = io.BytesIO()
        Image.open(io.BytesIO(data)).resize((128, 96)).save(image, "JPEG", quality=85)
        files.append(folder / f"photograph-{number}")
        files[-1].write_bytes(image.getvalue())
    while len(files) * LINKS < 2 * pairs:  # different comments make different files of the same image
        data, comment = files[0].read_bytes(), f"{len(files):06d}".encode()
        files.append(folder / f"photograph-{len(files)}")
        files[-1].write_bytes(data[:2] + b"\xff\xfe\0\x08" + comment + data[2:])
    tables = [
        (count, (folder / f"{name}.csv").open("w", newline="")) for name, count in (("all", pairs), ("some", whole))
    ]
    for _, table in tables:
        table.write("before,after,caption\n")
    for n in range(pairs):
        place = f"{n // 1000:05d}"
        if n % 1000 == 0:
            (folder / place).mkdir()
        names = [f"{place}/{n % 1000:03d}-{half}.jpg" for half in "ab"]
        for half, name in enumerate(names):
            os.link(files[(2 * n + half) % len(files)], folder / name)
        for count, table in tables:
            if n < count:
                table.write(f'{names[0]},{names[1]},"in scene {n}, a thing is gone"\n')
    for _, table in tables:
        table.close()


def timed(code: str, *words: object, folder: Path) -> tuple[float, float]:
    """Processor seconds and peak of resident memory in MB of a Python process."""
    told = folder / "told"
    program = "import resource, sys\n" + code + "\n" + TOLD.format(str(told))
    subprocess.run([sys.executable, "-c", program, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    seconds, peak = map(float, told.read_text().split())
    return seconds, peak


def median(runs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The median time, and the highest peak."""
    seconds, peaks = zip(*runs, strict=True)
    return statistics.median(seconds), max(peaks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--whole", type=int, default=100_000, help="pairs converted by one process, and by all tasks")
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--img2dataset", type=Path, metavar="COMMAND", default=shutil.which("img2dataset"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        found = measured(Path(work), args.pairs, min(args.whole, args.pairs), args.tasks, args.img2dataset)
        for name, value in found.items():  # removing two million files takes minutes
            print(f"{name:<48} {value}", flush=True)
        if args.json:
            args.json.write_text(json.dumps({"machine": machine(), **found}, indent=2) + "\n")


def measured(work: Path, pairs: int, whole: int, tasks: int, img2dataset: Path | None) -> dict[str, object]:
    source = work / "source"
    source.mkdir()
    make_source(source, pairs, whole)
    scale = pairs / whole

    def converted(table: str, out: str, *words: object) -> tuple[float, float]:
        words = ("data", "convert", "generic", "--table", source / f"{table}.csv", "--out", work / out, *words)
        return timed(COMMAND, *words, "--processes", 1, folder=work)

    def afresh(table: str, out: str, *words: object) -> tuple[float, float]:
        shutil.rmtree(work / out, ignore_errors=True)
        return converted(table, out, *words)

    limit, _ = median(timed(LIMIT, source, work / "limit", folder=work) for _ in range(3))
    (work / "limit").unlink()
    one, one_peak = median(afresh("some", "one") for _ in range(3))
    shutil.rmtree(work / "one")
    # As many parts as all pairs make in shards of a thousand; one task makes them, since joining them takes the same time.
    small = max(1, 1000 * whole // pairs)
    converted("some", "few", "--share", "0/1", "--shard-samples", small)
    together, together_peak = converted("some", "few", "--shard-samples", small)
    shutil.rmtree(work / "few")
    # The first task, which makes the plan, then others, which find it.
    first, first_peak = median(afresh("all", "shared", "--share", f"0/{tasks}") for _ in range(3))
    task, task_peak = median(converted("all", "shared", "--share", f"{share}/{tasks}") for share in (1, 2, 3))
    plan = first - task
    found: dict[str, object] = {
        "pairs": pairs,
        "pairs converted as a whole": whole,
        "limit (stat, read, write), pairs/s": round(whole / limit),
        "one process, pairs/s": round(whole / one),
        "one process, of the limit": round(limit / one, 3),
        "one process, peak MB": round(one_peak),
        "one process, all pairs, s (scaled)": round(one * scale),
        "plan of all pairs, s": round(plan, 1),
        "a task without the plan, s": round(task, 1),
        "first task, peak MB": round(first_peak),
        "a task, peak MB": round(task_peak),
        "joining as many parts, s": round(together, 1),
        "joining, peak MB": round(together_peak),
        "speed-up of a task": round(one * scale / task, 1),
        "speed-up of the plan and a task": round(one * scale / (plan + task), 1),
        "speed-up of the whole chain": round(one * scale / (plan + task + together), 1),
    }
    if img2dataset:
        few = work / "images"
        few.mkdir()
        for number, path in enumerate(sorted(source.glob("00000/*.jpg"))):
            shutil.copy(path, few / f"{number:05d}.jpg")
        (work / "fetched").mkdir()
        began = sum(os.times()[:4])
        with_img2dataset(few, work / "fetched", img2dataset, 1)
        found["img2dataset, pairs/s"] = round(len(list(few.iterdir())) / 2 / (sum(os.times()[:4]) - began))
    return found


if __name__ == "__main__":
    main()
