"""Response times of the commands used on a login node, compared with starting Python.

  python benchmarks/answers.py [--rounds 10] [--json FILE]

Each round runs every command once, in turn, in a separate process in an empty folder. Prints the median
processor seconds (which other work on the machine hardly affects), and their ratio to those of the bare interpreter.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import machine

LAUNCH = ["-m", "onediff", "launch"]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import yaml, pydantic": ["-c", "import yaml, pydantic; pydantic.BaseModel"],
    "onediff --help": ["-m", "onediff", "--help"],
    "onediff launch status": [*LAUNCH, "status"],
    "onediff launch submit --help": [*LAUNCH, "submit", "--help"],
    "onediff launch data --dry-run": [*LAUNCH, "data", "render.yaml", "--dry-run", "--profile", "local"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "render.yaml").write_text("name: scenes\ncommands: [render --out scenes --pairs 10]\n")
        for command in COMMANDS.values():  # one warm-up run, to fill the file cache
            processor_seconds(command, folder)
        for _ in range(args.rounds):
            for name, command in COMMANDS.items():
                seconds[name].append(processor_seconds(command, folder))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    bare = medians["python -c pass"]
    for name, median in medians.items():
        print(f"{name:<31} {median:.3f} s {median / bare:6.1f} ×")
    if args.json:
        found = {
            "seconds": {name: round(median, 4) for name, median in medians.items()},
            "ratio": {name: round(median / bare, 2) for name, median in medians.items()},
            "rounds": args.rounds,
            "machine": machine(),
        }
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def processor_seconds(command: list[str], folder: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
