"""The number of pairs per minute that one core renders and composes, encoded as the commands write them.

    python benchmarks/synthetic_pairs.py [--seconds 5] [--json FILE]
    python benchmarks/synthetic_pairs.py --backgrounds /usr/share/doc/opencv-doc/examples/data \\
        --cutouts /usr/share/tuxpaint/stamps --whole 10000
                                                        (the Debian packages opencv-doc and tuxpaint-stamps-default)

Prints processor time, so that other work on the machine does not count. The ratio compares a composed pair with a rendered
one of the same size. `--whole N` also runs `onediff data compose --pairs N` to finished shards, on all cores, and prints its
time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine

from data_prep.compose import ComposeConfig, Library, find_backgrounds, find_cutouts
from data_prep.compose.samples import ComposedPairs
from data_prep.scenes import ScenesConfig
from data_prep.scenes.samples import PairMaker
from data_prep.synthetic import Maker


def milliseconds(maker: Maker, seconds: float) -> float:
    """Processor time per sample, with warm caches."""
    for index in range(30):
        maker(index)
    began, index = time.process_time(), 30
    while time.process_time() - began < seconds:
        maker(index)
        index += 1
    return 1000 * (time.process_time() - began) / (index - 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds per row (default: 5)")
    parser.add_argument("--backgrounds", type=Path, nargs="+", default=[], help="default: scikit-image's photographs")
    parser.add_argument("--cutouts", type=Path, nargs="+", default=[], help="default: rendered solids")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--whole", type=int, default=0, metavar="N", help="also write N pairs with the command")
    args = parser.parse_args()
    library = Library(tuple(find_backgrounds(args.backgrounds).backgrounds), tuple(find_cutouts(args.cutouts).cutouts))
    makers: dict[str, Maker] = {}
    for side in (64, 128, 256):
        makers[f"rendered {side} px, PNG"] = PairMaker(0, "train", 0, ScenesConfig(width=side, height=side))
    makers["composed 256 px, JPEG"] = ComposedPairs(0, "train", 92, ComposeConfig(), library)
    times = {name: milliseconds(maker, args.seconds) for name, maker in makers.items()}
    for name, cost in times.items():
        print(f"{name:<24} {cost:7.2f} ms per pair {60_000 / cost:10,.0f} pairs per minute and core")
    ratio = times["composed 256 px, JPEG"] / times["rendered 256 px, PNG"]
    print(f"composed / rendered at 256 px: {ratio:.2f}")
    found: dict[str, Any] = {"milliseconds": times, "ratio": ratio}
    if args.whole:
        found["whole"] = whole(args)
        print(
            f"{args.whole:,} composed pairs, from the command to the shards: {found['whole']['seconds'] / 60:.1f} minutes"
        )
    if args.json:
        found["library"] = {"backgrounds": len(library.backgrounds), "cutouts": len(library.cutouts)}
        found["machine"] = machine("pillow", "numpy")
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def whole(args: argparse.Namespace) -> dict[str, float]:
    """Seconds that `onediff data compose` takes for `args.whole` pairs."""
    with tempfile.TemporaryDirectory() as out:
        words = ["data", "compose", "--out", out, "--pairs", args.whole]
        words += ["--backgrounds", *args.backgrounds] if args.backgrounds else []
        words += ["--cutouts", *args.cutouts] if args.cutouts else []
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "onediff", *map(str, words)], check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - began
        written = sum(json.loads(file.read_text())["samples"] for file in Path(out).glob("*/manifest.json"))
        size = sum(path.stat().st_size for path in Path(out).rglob("*.tar"))
    return {"pairs": written, "seconds": round(seconds, 1), "megabytes": round(size / 1e6, 1)}


if __name__ == "__main__":
    main()
