"""How many pairs a minute one core renders and composes, encoded as the commands write them.

    python benchmarks/synthetic_pairs.py [--seconds 5] [--json FILE]
    python benchmarks/synthetic_pairs.py --backgrounds /usr/share/doc/opencv-doc/examples/data \\
        --cutouts /usr/share/tuxpaint/stamps            (the Debian packages opencv-doc and tuxpaint-stamps-default)

Prints processor time, so that other work on the machine does not count. The ratio tells what a composed pair costs
beside a rendered one of the same size.
"""

import argparse
import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path

from data_prep.compose import ComposeConfig, Library, find_backgrounds, find_cutouts
from data_prep.compose.samples import ComposedPairs
from data_prep.scenes import ScenesConfig
from data_prep.scenes.samples import Pairs
from data_prep.synthetic import Maker


def milliseconds(maker: Maker, seconds: float) -> float:
    """Processor time of one sample, once caches are warm."""
    for index in range(30):
        maker(index)
    began, index = time.process_time(), 30
    while time.process_time() - began < seconds:
        maker(index)
        index += 1
    return 1000 * (time.process_time() - began) / (index - 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row")
    parser.add_argument("--backgrounds", type=Path, nargs="+", default=[], help="default: scikit-image's photographs")
    parser.add_argument("--cutouts", type=Path, nargs="+", default=[], help="default: rendered solids")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    library = Library(tuple(find_backgrounds(args.backgrounds).backgrounds), tuple(find_cutouts(args.cutouts).cutouts))
    makers: dict[str, Maker] = {}
    for side in (64, 128, 256):
        makers[f"rendered {side} px, PNG"] = Pairs(0, "train", 0, ScenesConfig(width=side, height=side))
    makers["composed 256 px, JPEG"] = ComposedPairs(0, "train", 92, ComposeConfig(), library)
    times = {name: milliseconds(maker, args.seconds) for name, maker in makers.items()}
    for name, cost in times.items():
        print(f"{name:<24} {cost:7.2f} ms a pair {60_000 / cost:10,.0f} pairs a minute and core")
    ratio = times["composed 256 px, JPEG"] / times["rendered 256 px, PNG"]
    print(f"composed / rendered at 256 px: {ratio:.2f}")
    minutes = 10_000 * times["composed 256 px, JPEG"] / 60_000 / 2
    print(f"10,000 composed pairs on 2 cores: {minutes:.1f} minutes")
    if args.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "library": {"backgrounds": len(library.backgrounds), "cutouts": len(library.cutouts)},
            "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in ("pillow", "numpy")}},
        }
        args.json.write_text(
            json.dumps(
                {"milliseconds": times, "ratio": ratio, "minutes_10000_on_2_cores": minutes, **machine}, indent=2
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
