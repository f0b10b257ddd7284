"""The cost of starting a rank: processor seconds of imports, and until its engine is built.

    python benchmarks/rank_start.py [--rounds 5] [--json benchmarks/results/rank_start.json]

Each round is a new process that imports torch, then all other imports of `onediff train`, then builds the demo's model under
ZeRO-3. Every restart pays this cost, and so does every rank in a test. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from machine import machine

ROOT = Path(__file__).parents[1]
RANK = """
import json, time
seconds = {"interpreter": time.process_time()}
import torch
seconds["torch"] = time.process_time()
import onediff.training.run
seconds["onediff"] = time.process_time()
from onediff.config.compose import load_run
from onediff.parallel.ranks import initialize_distributed, shutdown
from onediff.parallel.topology import create_topology
from onediff.training.engine import Engine
from onediff.training.start import built
config = load_run("configs/demo.yaml", ["model=models/tiny", "parallel.zero_stage=3"])
topology = create_topology(config.parallel, initialize_distributed())
model = built(config, config.model, "two", topology, filled_later=False)
Engine(model, config, config.phases["two"], topology)
seconds["engine"] = time.process_time()
shutdown()
print(json.dumps(seconds))
"""
"""Prints processor seconds from the start of the process to the end of each stage."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    rounds = []
    for _ in range(args.rounds + 1):
        done = subprocess.run(
            [sys.executable, "-c", RANK], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
    rounds = rounds[1:]  # the first fills the file cache
    seconds = {stage: round(statistics.median(one[stage] for one in rounds), 2) for stage in rounds[0]}
    for stage, value in seconds.items():
        print(f"{stage:<12} {value:5.2f} s")
    if args.json:
        found = {"machine": machine("torch", "deepspeed", "transformers"), "rounds": args.rounds, "seconds": seconds}
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
