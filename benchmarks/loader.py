"""The speed of loading training data, compared with other loaders and with decoding alone.

    python benchmarks/loader.py --peers PYTHON --json benchmarks/results/loader.json     # every way, on quiet cores
    python benchmarks/loader.py [--pairs 200] [--turns 3] [--ways WAY …] [--parts ways pixels resume]

All loaders read the same pairs of photographs (JPEG, 768 × 576) in one process without workers and return batches of 8
pairs at 336 × 336 with their captions. The peers are in `loader_peers.py`: they run as commonly used, with Pillow and the
Hugging Face CLIP processor, and again, as `…_fast`, with this project's decoder and scaling. `limit` only decodes and scales
images in memory. Each way runs in its own process, in turns; every ratio is the median over the turns of the ratio within a
turn. Rates are pairs per second of processor time, which other work on the machine distorts less than wall-clock time.
`--peers` names a Python with the peers installed, in a separate environment (the extra `bench` in `setup.py`, with this
project's versions of torch, Pillow, simplejpeg and transformers); missing peers are left out. mosaicml-streaming and
megatron-energon require older packages or many cloud clients; they work here if installed with `--no-deps`.

It then compares the pixels of each decoder with the processor's, and measures the time to the first batch after resuming in
100,000 samples, compared with webdataset's skipping. Each resume runs in its own process, which has finished its imports,
opens the set for the first time and finds the files in the system's cache; the result is the median of 15, in turns.
`--parts` runs only some parts and leaves the others in the file unchanged.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loader_peers
import numpy as np
from loader_formats import prepare
from loader_peers import BATCH, PACKAGES, SIZE, present
from machine import machine
from PIL import Image, ImageDraw

OURS = ("limit", "limit_exact", "onediff", "onediff_exact")
PARTS = ("ways", "pixels", "resume")
FRESH = 15
"""Number of processes that measure each position of resuming."""
PIXELS = ("torch", "pillow", "simplejpeg", "transformers", "opencv-python-headless", "numpy")
PEERS = ("webdataset", "torchvision", "megatron-energon", "mosaicml-streaming", "spdl", "litdata", "grain")
"""Distributions whose versions are stored with the figures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--samples", type=int, default=100_000, help="samples in the set for resuming")
    parser.add_argument("--peers", type=Path, metavar="PYTHON")
    parser.add_argument("--ways", nargs="+", metavar="WAY", choices=(*OURS, *PACKAGES), default=(*OURS, *PACKAGES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "DIR"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args.one[0], Path(args.one[1]))))
        return
    found: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    found["machine"] = machine(*PIXELS) | {"peers": versions(args.peers or Path(sys.executable))}
    with tempfile.TemporaryDirectory() as scratch:
        if "ways" in args.parts:
            folder = Path(scratch) / "pairs" / "train"
            write_pairs(folder, args.pairs)
            python = args.peers or Path(sys.executable)
            peers = [way for way in args.ways if way in PACKAGES and present(way, python)]
            ways = [*OURS, *peers]
            if missing := set(args.ways) - set(ways):
                print(f"not installed in {python}: {', '.join(sorted(missing))}")
            for package in sorted({way.removesuffix("_fast") for way in peers}):
                prepare(package, folder, python)
            found |= {"pairs": args.pairs, "turns": args.turns}
            found["ways"] = rates(ways, folder, args.turns, python)
        if "pixels" in args.parts:
            found["pixels"] = pixels(photographs())
        if "resume" in args.parts:
            found["resume"] = resume(Path(scratch) / "many" / "train", args.samples)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def rates(ways: list[str], folder: Path, turns: int, peers: Path) -> dict[str, Any]:
    """Pairs per second of processor and wall-clock time, and peak resident memory, by way."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(turns):
        for way in ways:
            python = str(peers) if way in PACKAGES else sys.executable
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
            command = [python, __file__, "--one", way, str(folder)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
            if done.returncode:
                sys.exit(f"{way}: {done.stderr[-2000:]}")
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'way':<17}{'pairs/s of CPU':>15}{'pairs/s':>9}{'peak MB':>9}{'of limit':>10}{'times webdataset':>18}")
    found = {}
    for way, of_way in runs.items():
        limit = runs["limit_exact" if way.endswith("exact") else "limit"]
        row = {name: round(statistics.median(run[name] for run in of_way), 2) for name in of_way[0]}
        row["of_limit"] = ratio(of_way, limit)
        row["times_webdataset"] = ratio(of_way, runs["webdataset"])
        found[way] = row
        print(
            f"{way:<17}{row['per_cpu_second']:>15.1f}{row['per_second']:>9.1f}{row['peak_MB']:>9.0f}"
            f"{row['of_limit']:>10.2f}{row['times_webdataset']:>18.2f}"
        )
    return found


def ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return round(statistics.median(a["per_cpu_second"] / b["per_cpu_second"] for a, b in pairs), 3)


def measured(way: str, folder: Path) -> dict[str, float]:
    """The rate of one way over three seconds of processor time, after four warm-up batches."""
    batches = (globals() if way in OURS else vars(loader_peers))[f"read_{way}"](folder)
    for _ in range(4):
        next(batches)
    count, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.process_time() - cpu < 3:
        count += next(batches)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"per_cpu_second": count / cpu, "per_second": count / wall, "peak_MB": peak}


def images_in(folder: Path) -> list[bytes]:
    import webdataset

    samples = webdataset.WebDataset([str(path) for path in sorted(folder.glob("*.tar"))], shardshuffle=False)
    return [sample[name] for sample in samples for name in ("before.jpg", "after.jpg")][:200]


def read_limit(folder: Path, pixels: str = "fast") -> Iterator[int]:
    import torch

    from onediff.config.model import ImageConfig
    from onediff.data.images import decode

    torch.set_num_threads(1)
    config = ImageConfig(size=SIZE, fit="crop")
    images = itertools.cycle(images_in(folder))
    while True:
        for _ in range(2 * BATCH):
            decode(next(images), config, pixels=pixels)  # type: ignore[arg-type]
        yield BATCH


def read_limit_exact(folder: Path) -> Iterator[int]:
    return read_limit(folder, "exact")


def read_onediff(folder: Path, pixels: str = "fast") -> Iterator[int]:
    import torch

    torch.set_num_threads(1)
    for batch in stream_loader(folder, make_processor(folder, pixels), 0):
        yield len(batch.info["ids"])


def make_processor(folder: Path, pixels: str) -> Any:
    from onediff.config.data import DataConfig
    from onediff.config.model import ImageConfig, LanguageConfig
    from onediff.data.prompts import Prompter
    from onediff.data.rows import Processor
    from onediff.model.tokenizer import learn_tokenizer, load_tokenizer

    with tempfile.TemporaryDirectory() as scratch:
        learn_tokenizer(["a square was added to the photograph"] * 3, 320, Path(scratch))
        language = LanguageConfig.model_validate({"config": {"model_type": "llama"}, "tokenizer": {"vocabulary": 320}})
        tokenizer = load_tokenizer(language, Path(scratch))
    config = DataConfig.model_validate({"sets": {"pairs": str(folder.parent)}, "pixels": pixels})
    return Processor(Prompter(tokenizer, config.prompt, 64), ImageConfig(size=SIZE, fit="crop"), config, patch=14)


def stream_loader(folder: Path, processor: Any, index: int) -> Any:
    """The batches of one rank without workers, starting at sample `index` of every lane."""
    from onediff.data.cursor import Cursor
    from onediff.data.loader import read_batches
    from onediff.data.stream import Source, Stream

    stream = Stream([Source.open("pairs", folder, BATCH, 0, 1024)], processor, False, 0, 50)
    cursor = Cursor.start(range(BATCH))._replace(lanes=dict.fromkeys(range(BATCH), (index,)))
    return (batch for batch, _ in read_batches(stream, BATCH, cursor, 0, 2, 0.01))


def read_onediff_exact(folder: Path) -> Iterator[int]:
    return read_onediff(folder, "exact")


def photographs() -> list[Image.Image]:
    """Photographs of scikit-image at 768 × 576."""
    import skimage.data

    names = ("astronaut", "chelsea", "coffee", "cat", "rocket")
    crops = [Image.fromarray(getattr(skimage.data, name)()[..., :3]) for name in names]
    return [image.convert("RGB").resize((768, 576), Image.Resampling.LANCZOS) for image in crops]


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def write_pairs(folder: Path, count: int) -> None:
    """Pairs whose second image has an additional square, in four shards."""
    from data_prep.tar import TarWriter

    folder.mkdir(parents=True)
    random, images = np.random.default_rng(0), photographs()
    pool = []
    for number in range(min(count, 40)):
        before = images[number % len(images)]
        after = before.copy()
        x, y = random.integers(0, 500, 2)
        ImageDraw.Draw(after).rectangle([x, y, x + 80, y + 60], tuple(random.integers(0, 256, 3).tolist()))
        pool.append((jpeg(before), jpeg(after)))
    for shard in range(4):
        out = TarWriter(folder / f"pairs-{shard:03d}.tar")
        for number in range(shard * count // 4, (shard + 1) * count // 4):
            before, after = pool[number % len(pool)]
            out.add(members(number, before, after))
        out.close()


def members(number: int, before: bytes, after: bytes) -> list[tuple[str, bytes]]:
    caption = "a square was added to the photograph"
    record = {"id": f"p{number}", "source": "bench", "task": "pair", "split": "train", "captions": [caption]}
    key = f"{number:06d}"
    text = json.dumps(record).encode()
    return [(f"{key}.before.jpg", before), (f"{key}.after.jpg", after), (f"{key}.json", text)]


def pixels(images: list[Image.Image]) -> dict[str, Any]:
    """Time and error of each way from JPEG to `[336, 336, 3]`, compared with the Hugging Face processor."""
    import cv2
    import simplejpeg
    import torch
    from transformers import CLIPImageProcessorPil

    from onediff.config.model import ImageConfig
    from onediff.data.images import decode, fitted, fitted_fast

    config = ImageConfig(size=SIZE, fit="crop")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)

    def with_draft(data: bytes) -> Any:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (SIZE, SIZE))
        return fitted(image, config)

    def with_opencv(data: bytes, interpolation: int) -> Any:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        left = (SIZE * 768 // 576 - SIZE) // 2
        return cv2.resize(pixels, (SIZE * 768 // 576, SIZE), interpolation=interpolation)[
            :, left : left + SIZE
        ].transpose(2, 0, 1)

    ways: dict[str, Callable[[bytes], Any]] = {
        "Pillow (exact)": lambda data: decode(data, config),
        "Pillow, draft": with_draft,
        "simplejpeg, Pillow's scaling": lambda data: fitted(Image.fromarray(simplejpeg.decode_jpeg(data)), config),
        "simplejpeg, torch's scaling (fast)": lambda data: decode(data, config, pixels="fast"),
        "simplejpeg at 5/8, torch's scaling": lambda data: fitted_fast(
            simplejpeg.decode_jpeg(data, min_height=SIZE, min_width=SIZE, min_factor=1), config
        ),
        "OpenCV, cubic": lambda data: with_opencv(data, cv2.INTER_CUBIC),
        "OpenCV, area": lambda data: with_opencv(data, cv2.INTER_AREA),
    }
    made = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    encoded = [jpeg(image) for image in images]
    raw = {"do_normalize": False, "do_rescale": False, "return_tensors": "np"}
    theirs = [made(Image.open(io.BytesIO(data)), **raw)["pixel_values"][0].astype(int) for data in encoded]
    found = {}
    print(f"\n{'decoding':<36}{'ms per image':>13}{'mean error':>12}{'99 %':>6}{'max':>5}  (of 255)")
    for name, way in ways.items():
        errors = np.stack([np.abs(way(data).astype(int) - their) for data, their in zip(encoded, theirs, strict=True)])
        times = []
        for _ in range(5):
            began = time.process_time()
            for data in encoded:
                way(data)
            times.append((time.process_time() - began) / len(encoded))
        row = (min(times) * 1e3, errors.mean(), np.percentile(errors, 99), errors.max())
        found[name] = dict(zip(("ms", "mean", "p99", "max"), (round(float(value), 3) for value in row), strict=True))
        print(f"{name:<36}{row[0]:>13.2f}{row[1]:>12.3f}{row[2]:>6.0f}{row[3]:>5.0f}")
    return found


def resume(folder: Path, samples: int) -> dict[str, Any]:
    """Seconds to the first batch at three positions in a set of small samples in shards of a thousand."""
    import webdataset

    from data_prep.tar import TarWriter
    from onediff.data.index import read_index

    folder.mkdir(parents=True)
    small = jpeg(Image.new("RGB", (32, 32), "red"))
    for start in range(0, samples, 1000):
        out = TarWriter(folder / f"many-{start // 1000:04d}.tar")
        for number in range(start, min(start + 1000, samples)):
            out.add(members(number, small, small))
        out.close()
    shards = sorted(folder.glob("*.tar"))
    for shard in shards:
        read_index(shard)  # as `onediff data index` leaves it
    from onediff.data.manifest import build_manifest, write_manifest

    write_manifest(build_manifest(folder))
    processor = make_processor(folder, "fast")
    parts = (0.01, 0.5, 0.99)
    for part in parts:  # fill the system's cache
        in_a_fresh_process(folder, processor, int(part * samples))
    times: dict[float, list[tuple[float, float]]] = {part: [] for part in parts}
    for _ in range(FRESH):
        for part in parts:
            times[part].append(in_a_fresh_process(folder, processor, int(part * samples)))
    found: dict[str, Any] = {}
    print(f"\n{'resuming at':<14}{'onediff s':>12}{'of CPU':>10}{'webdataset s':>14}")
    for part, of_part in times.items():
        clock, processor = (statistics.median(values) for values in zip(*of_part, strict=True))
        began = time.perf_counter()
        data = iter(webdataset.WebDataset([str(path) for path in shards], shardshuffle=False))
        for _ in itertools.islice(data, int(part * samples)):
            pass
        theirs = sum(1 for _ in itertools.islice(data, BATCH)) and time.perf_counter() - began
        found[f"{part:.0%}"] = {
            "onediff": round(clock, 4),
            "onediff_cpu": round(processor, 4),
            "webdataset": round(theirs, 3),
        }
        print(f"{part:<14.0%}{clock:>12.4f}{processor:>10.4f}{theirs:>14.2f}")
    for name in ("onediff", "onediff_cpu"):
        values = [row[name] for row in found.values() if isinstance(row, dict)]
        found["spread" if name == "onediff" else "spread_cpu"] = round(max(values) / min(values) - 1, 3)
    print(f"differs by {found['spread']:.0%}, in processor time by {found['spread_cpu']:.0%}")
    return found


def in_a_fresh_process(folder: Path, processor: Any, position: int) -> tuple[float, float]:
    """Wall-clock and processor seconds to the first batch, in a fork of this process."""
    there, here = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: there.send(first_batch(folder, processor, position))
    )
    child.start()
    if not here.poll(120):
        child.kill()
        sys.exit("resume: no first batch after two minutes")
    times = here.recv()
    child.join()
    return times


def first_batch(folder: Path, processor: Any, position: int) -> tuple[float, float]:
    """Wall-clock and processor seconds from opening the set to the first batch after `position` samples."""
    began, cpu = time.perf_counter(), time.process_time()
    batch = next(iter(stream_loader(folder, processor, position // BATCH)))
    times = time.perf_counter() - began, time.process_time() - cpu
    assert len(batch.info["ids"]) == BATCH
    return times


def versions(python: Path) -> dict[str, str]:
    """Versions of the packages that the peers use under `python`, which may be another interpreter."""
    code = f"""
from importlib.metadata import PackageNotFoundError, version
for name in {(*PIXELS, *PEERS)}:
    try:
        print(name, version(name))
    except PackageNotFoundError:
        pass
"""
    told = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return dict(line.split() for line in told.stdout.splitlines())


if __name__ == "__main__":
    main()
