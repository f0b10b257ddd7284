"""The speed at which `onediff data convert` writes shards, compared with `tar`, webdataset's ShardWriter and img2dataset.

    python benchmarks/shard_writing.py [--pairs 4000] [--repeats 5] [--img2dataset PATH] [--json FILE]

Every way packs the same JPEG files, which are in the page cache. None calls fsync, but each one's output is on disk before
the next begins. `tar` only copies, so it is the limit; the others make samples. The ways run in turns, and each ratio is the
median over the turns of the ratio within a turn. `peak` is the resident memory of the process and its children; `cpu` is
their processor time, which other work on the machine distorts less than the rate. With resizing (a quarter of the pairs),
the limit is the same decoding, resizing and encoding in the same number of processes, without writing. img2dataset, if its
command is given, fetches from a server on this machine; because it is slow, it gets a quarter of the pairs and two turns.
"""

from __future__ import annotations

import argparse
import csv
import functools
import http.server
import io
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from machine import machine
from PIL import Image

from data_prep.convert import convert
from data_prep.images import Encoding, prepare
from data_prep.readers import Inputs, reader
from data_prep.writer import cores

DISTINCT = 32


def photographs() -> list[bytes]:
    """JPEGs of about 140 kB, 768 × 576: parts of scikit-image's photographs."""
    from skimage import data

    sources = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")]
    draw, made = np.random.default_rng(0), []
    for number in range(DISTINCT):
        source = sources[number % len(sources)].convert("RGB")
        left, top = (int(draw.integers(0, side // 4)) for side in source.size)
        part = source.crop((left, top, left + source.width * 3 // 4, top + source.height * 3 // 4)).resize((768, 576))
        grain = draw.normal(0, 7, (576, 768, 1))
        pixels = (np.asarray(part) + grain).clip(0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=88)
        made.append(out.getvalue())
    return made


def make_source(folder: Path, pairs: int) -> Path:
    """A folder of images and its table."""
    images = photographs()
    with (folder / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["before", "after", "caption"])
        for n in range(pairs):
            for half, offset in (("a", 0), ("b", 1)):
                (folder / f"{n:06d}_{half}.jpg").write_bytes(images[(n + offset) % DISTINCT])
            rows.writerow([f"{n:06d}_a.jpg", f"{n:06d}_b.jpg", f"thing {n} is gone"])
    return folder / "pairs.csv"


def with_tar(source: Path, out: Path) -> None:
    names = sorted(name for name in os.listdir(source) if name.endswith(".jpg"))
    (out / "names").write_text("\n".join(names))
    subprocess.run(["tar", "-cf", out / "all.tar", "-C", source, "-T", out / "names"], check=True)


def with_onediff(source: Path, out: Path, processes: int, encoding: Encoding) -> None:
    inputs = Inputs(source / "pairs.csv", source)
    convert(reader("generic"), inputs, out, encoding=encoding, processes=processes, shard_samples=250, seed=0)


def with_webdataset(source: Path, out: Path) -> None:
    from webdataset import ShardWriter

    with (source / "pairs.csv").open() as file, ShardWriter(str(out / "%06d.tar"), maxcount=250, verbose=0) as writer:
        for number, row in enumerate(csv.DictReader(file)):
            writer.write(
                {
                    "__key__": f"{number:08d}",
                    "before.jpg": (source / row["before"]).read_bytes(),
                    "after.jpg": (source / row["after"]).read_bytes(),
                    "json": {"captions": [row["caption"]]},
                }
            )


def resize_files(paths: list[Path], encoding: Encoding) -> int:
    return sum(len(prepare(path.read_bytes(), encoding)[0]) for path in paths)


def only_resizing(source: Path, out: Path, processes: int, encoding: Encoding) -> None:
    paths = sorted(source.glob("*.jpg"))
    pieces = [paths[at : at + 500] for at in range(0, len(paths), 500)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(functools.partial(resize_files, encoding=encoding), pieces, chunksize=1)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing, since there are thousands of requests."""


def with_img2dataset(source: Path, out: Path, command: Path, processes: int) -> None:
    """img2dataset supports single images only: twice as many samples, of one image each."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(source)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = [f"http://127.0.0.1:{server.server_port}/{name}" for name in sorted(os.listdir(source)) if "jpg" in name]
    (out / "urls.csv").write_text("\n".join(["url,caption", *(f"{url},a thing is gone" for url in urls)]) + "\n")
    words = ["--url_list", out / "urls.csv", "--input_format", "csv", "--url_col", "url", "--caption_col", "caption"]
    words += ["--output_format", "webdataset", "--output_folder", out / "shards", "--processes_count", processes]
    words += ["--thread_count", 16, "--resize_mode", "no", "--number_sample_per_shard", 500]
    words += ["--enable_wandb", "False", "--disable_all_reencoding", "True"]
    try:
        subprocess.run([command, *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finally:
        server.shutdown()
    written = sum(json.loads(file.read_text())["successes"] for file in (out / "shards").glob("*_stats.json"))
    if written != len(urls):
        raise SystemExit(f"img2dataset wrote {written} of {len(urls)} images")


@dataclass(frozen=True)
class Way:
    """A way of packing the images of `source`, the way that is its limit, and its number of turns."""

    source: Path
    limit: str
    pack: Callable[[Path, Path], None]
    turns: int = 1000

    def size(self) -> tuple[int, float]:
        """Pairs, and megabytes of their images."""
        sizes = [path.stat().st_size for path in self.source.glob("*.jpg")]
        return len(sizes) // 2, sum(sizes) / 1e6


def measured(way: Way) -> tuple[float, float, float]:
    """Seconds, peak of resident memory of this process and its children in MB above the start, processor seconds."""
    me, peak, done = psutil.Process(), [0], threading.Event()
    at_start = me.memory_info().rss

    def watch() -> None:
        while not done.wait(0.05):
            total = me.memory_info().rss - at_start
            for child in me.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue  # it exited meanwhile
            peak[0] = max(peak[0], total)

    watcher = threading.Thread(target=watch)
    with tempfile.TemporaryDirectory(dir=FOLDER) as out:
        os.sync()
        watcher.start()
        used, began = sum(os.times()[:4]), time.perf_counter()
        way.pack(way.source, Path(out))
        seconds, used = time.perf_counter() - began, sum(os.times()[:4]) - used
        done.set()
        watcher.join()
    return seconds, peak[0] / 1e6, used


FOLDER: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--img2dataset", type=Path, metavar="COMMAND", default=shutil.which("img2dataset"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    global FOLDER
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        FOLDER = Path(work)
        many, few = FOLDER / "many", FOLDER / "few"
        for folder, pairs in ((many, args.pairs), (few, args.pairs // 4)):
            folder.mkdir()
            make_source(folder, pairs)
        keep, small, n = Encoding(), Encoding(max_side=336), args.processes
        ways: dict[str, Way] = {
            "tar": Way(many, "tar", with_tar),
            "onediff, 1 process": Way(many, "tar", lambda i, o: with_onediff(i, o, 1, keep)),
            f"onediff, {n} processes": Way(many, "tar", lambda i, o: with_onediff(i, o, n, keep)),
            "webdataset ShardWriter": Way(many, "tar", with_webdataset),
            "resizing alone": Way(few, "resizing alone", lambda i, o: only_resizing(i, o, n, small)),
            "onediff, resizing": Way(few, "resizing alone", lambda i, o: with_onediff(i, o, n, small)),
        }
        if args.img2dataset:
            ways["tar, a quarter"] = Way(few, "tar, a quarter", with_tar)
            ways["img2dataset"] = Way(
                few, "tar, a quarter", lambda i, o: with_img2dataset(i, o, args.img2dataset, n), turns=2
            )
        turns: list[dict[str, tuple[float, float, float]]] = []
        for turn in range(args.repeats + 1):
            turns.append({name: measured(way) for name, way in ways.items() if turn <= way.turns})
            print(f"turn {turn} of {args.repeats}{' (warm-up, not counted)' if turn == 0 else ''}", file=sys.stderr)
        report(args, ways, turns[1:])


def report(args: argparse.Namespace, ways: dict[str, Way], turns: list[dict[str, tuple[float, float, float]]]) -> None:
    """Prints the table, and the ratio of each way to its limit."""
    rows = []
    for name, way in ways.items():
        pairs, megabytes = way.size()
        found = [turn[name] for turn in turns if name in turn]
        seconds = statistics.median(one[0] for one in found)
        ratios = sorted(turn[way.limit][0] / turn[name][0] for turn in turns if name in turn)
        rows.append(
            {
                "way": name,
                "pairs": pairs,
                "samples_per_s": round(pairs / seconds, 1),
                "mb_per_s": round(megabytes / seconds, 1),
                "peak_mb": round(max(one[1] for one in found), 1),
                "cpu_ms_per_pair": round(1000 * statistics.median(one[2] for one in found) / pairs, 3),
                "limit": way.limit,
                "of_limit": round(statistics.median(ratios), 3),
                "of_limit_range": [round(ratios[0], 3), round(ratios[-1], 3)],
            }
        )
    print(f"{args.processes} processes, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for row in rows:
        low, high = row["of_limit_range"]
        print(
            f"{row['way']:<24} {row['pairs']:>6} pairs {row['samples_per_s']:>8} pairs/s {row['mb_per_s']:>8} MB/s  "
            f"peak {row['peak_mb']:>7} MB  cpu {row['cpu_ms_per_pair']:>7} ms/pair  "
            f"{row['of_limit']:.2f} of {row['limit']} ({low:.2f} to {high:.2f})"
        )
    if args.json:
        tar = subprocess.run(["tar", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
        about = machine("pillow", "numpy", "webdataset") | {"tar": tar, "fsync": False}
        if args.img2dataset:
            beside = f"{args.img2dataset.parent}/python"
            asked = "import importlib.metadata as m; print(m.version('img2dataset'))"
            done = subprocess.run([beside, "-c", asked], capture_output=True, text=True, check=False)
            about["img2dataset"] = done.stdout.strip() or "unknown"
        args.json.write_text(json.dumps({"machine": about, "repeats": len(turns), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
