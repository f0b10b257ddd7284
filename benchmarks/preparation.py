"""A table of a million pairs to shards: by one process, and by 64 tasks that share the work.

    python benchmarks/preparation.py [--pairs 1000000] [--tasks 64] [--measured 4] [--img2dataset PATH] [--json FILE]

The pairs are all combinations of some small JPEG files, which lie in the page cache, so the software is measured and not
the disk. Every way runs in a process of its own on one core. The limit looks at each file (`stat`), reads it and writes it
into one large file. Of the tasks so many are measured as --measured says, the first of which makes the plan for all; the
rest is made without being counted. Times are processor times, which other work on the machine falsifies less than the
clock. `speed-up` is the time of one process over that of the slowest task without the plan, over that with it, and over
the whole chain: the plan, the slowest task, putting together. img2dataset, where its command is given, fetches a hundredth
of the images from a server on this machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from shard_writing import photographs, with_img2dataset

LIMIT = """
import csv, os, sys
folder = sys.argv[1]
with open(folder + "/pairs.csv") as table, open(sys.argv[2], "wb") as out:
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


def make_source(folder: Path, pairs: int) -> None:
    """A table of so many different pairs of about 5 kB an image."""
    import io

    from PIL import Image

    side = int(pairs**0.5) + 1
    images = []
    for data in photographs():
        out = io.BytesIO()
        Image.open(io.BytesIO(data)).resize((128, 96)).save(out, "JPEG", quality=85)
        images.append(out.getvalue())
    for number in range(side):
        for half in "ab":
            # Another comment makes another file of the same image.
            data = images[number % len(images)]
            comment = f"{number}{half}".encode()
            length = (len(comment) + 2).to_bytes(2, "big")
            (folder / f"{number:05d}{half}.jpg").write_bytes(data[:2] + b"\xff\xfe" + length + comment + data[2:])
    with (folder / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["before", "after", "caption"])
        for n in range(pairs):
            rows.writerow([f"{n // side:05d}a.jpg", f"{n % side:05d}b.jpg", f"thing {n} is gone"])


def timed(code: str, *words: object, folder: Path) -> tuple[float, float]:
    """Processor seconds and peak of resident memory in MB of a Python process."""
    told = folder / "told"
    program = "import resource, sys\n" + code + "\n" + TOLD.format(str(told))
    subprocess.run([sys.executable, "-c", program, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    seconds, peak = map(float, told.read_text().split())
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--measured", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--img2dataset", type=Path, metavar="COMMAND", default=shutil.which("img2dataset"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        found = measured(Path(work), args.pairs, args.tasks, args.measured, args.img2dataset)
    for name, value in found.items():
        print(f"{name:<36} {value}")
    if args.json:
        args.json.write_text(
            json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0], **found}, indent=2) + "\n"
        )


def measured(work: Path, pairs: int, tasks: int, some: int, img2dataset: Path | None) -> dict[str, object]:
    source = work / "source"
    source.mkdir()
    make_source(source, pairs)
    words = ["data", "convert", "generic", "--table", source / "pairs.csv", "--processes", 1]
    limit, _ = timed(LIMIT, source, work / "limit", folder=work)
    (work / "limit").unlink()
    one, one_peak = timed(COMMAND, *words, "--out", work / "one", folder=work)
    shutil.rmtree(work / "one")

    def task(number: int) -> tuple[float, float]:
        return timed(COMMAND, *words, "--out", work / "shared", "--share", f"{number}/{tasks}", folder=work)

    first, first_peak = task(0)
    others = [task(number) for number in range(1, some)]
    for number in range(some, tasks):
        task(number)
    together, together_peak = timed(COMMAND, *words, "--out", work / "shared", folder=work)
    slowest = max(seconds for seconds, _ in others)
    found: dict[str, object] = {
        "pairs": pairs,
        "limit (stat, read, write), pairs/s": round(pairs / limit),
        "one process, pairs/s": round(pairs / one),
        "one process, of the limit": round(limit / one, 3),
        "one process, peak MB": round(one_peak),
        "plan, s": round(first - slowest, 1),
        "a task without the plan, s": round(slowest, 1),
        "a task, peak MB": round(max(peak for _, peak in others)),
        "first task, peak MB": round(first_peak),
        "putting together, s": round(together, 1),
        "putting together, peak MB": round(together_peak),
        "speed-up of a task": round(one / slowest, 1),
        "speed-up with the plan": round(one / first, 1),
        "speed-up of the whole chain": round(one / (first + together), 1),
    }
    if img2dataset:
        few = work / "few"
        few.mkdir()
        for path in sorted(source.glob("*.jpg"))[: pairs // 50]:
            shutil.copy(path, few)
        (work / "fetched").mkdir()
        began = sum(os.times()[:4])
        with_img2dataset(few, work / "fetched", img2dataset, 1)
        found["img2dataset, pairs/s"] = round(len(list(few.iterdir())) / 2 / (sum(os.times()[:4]) - began))
    return found


if __name__ == "__main__":
    main()
