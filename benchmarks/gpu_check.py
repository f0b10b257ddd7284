"""Checks on this machine's GPUs what the tests prove on a CPU: at most ten minutes, one line per check.

  make gpu-check                       on a machine with a GPU and the README's install
  make gpu-check ARGS=--dry-run        anywhere: the parts of each check that a CPU can run, at small sizes
  make gpu-check ARGS="--only resume,plan --json gpu-check.json"

Each check runs in its own process, which is killed when its time is up. A line says passed, failed, or not here, with the
reason. Exit code 1 if any check failed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]


@dataclass(frozen=True)
class Check:
    """One module of `gpu_checks`, whose function `check` is called."""

    title: str
    seconds: float
    """time limit of its process"""


CHECKS = {
    "ranks": Check("NCCL sums over all GPUs of this machine are right", 60),
    "attention": Check("every attention backend agrees with the reference, forward and backward", 75),
    "precision": Check("loss and gradients equal the CPU's", 60),
    "defaults": Check("expandable segments, NCCL's flight recorder and memory snapshots work", 45),
    "waits": Check("a step waits for the device no more often than docs/performance.md says", 60),
    "plan": Check("memory is within 10 %, and time within 25 %, of `onediff plan`", 90),
    "graphs": Check("CUDA graphs give the same captions", 60),
    "resume": Check("a resumed run repeats the losses bit for bit", 150),
}
"""In the order in which they run. Their times add up to ten minutes."""


def run_here(name: str, device: str, dry: bool, out: Path) -> None:
    """Runs one check in this process and writes its outcome to `out`."""
    import torch
    from gpu_checks.outcome import outcome
    from gpu_parts.measure import Setting

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device == "cuda" else "cpu")
    setting = Setting(torch.device(device), dry, time.monotonic() + CHECKS[name].seconds)
    found = outcome(lambda: importlib.import_module(f"gpu_checks.{name}").check(setting))
    out.write_text(json.dumps(found))


def run_apart(name: str, device: str, dry: bool) -> dict[str, Any]:
    """The outcome of one check, from a process that is killed when its time is up."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "outcome", Path(folder) / "log"
        words = [sys.executable, __file__, "--here", name, "--device", device, "--out", str(out)]
        with log.open("w") as stream:
            try:
                code = subprocess.run(
                    [*words, *(["--dry-run"] if dry else [])],
                    stdout=stream,
                    stderr=stream,
                    env={**os.environ, **({"OMP_NUM_THREADS": "1"} if dry else {})},
                    timeout=CHECKS[name].seconds * (10 if dry else 1),  # a CPU may be slow, and may be busy
                    check=False,
                ).returncode
                why = f"its process ended with code {code}"
            except subprocess.TimeoutExpired:
                why = f"not done after {CHECKS[name].seconds:.0f} s"
        if out.is_file():
            found = json.loads(out.read_text())
        else:
            last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
            found = {"result": "failed", "why": " ".join([f"{why};", *last])[:400], "figures": {}}
    return {"check": name, "title": CHECKS[name].title, **found, "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--dry-run] [--only NAME,…] [--json FILE]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dry-run", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--only", default=",".join(CHECKS), metavar="NAME,…", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--here", choices=CHECKS, help=argparse.SUPPRESS)
    parser.add_argument("--device", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        run_here(options.here, options.device, options.dry_run, options.out)
        return 0
    wanted = options.only.split(",")
    if unknown := [name for name in wanted if name not in CHECKS]:
        parser.error(f"--only: no check {unknown[0]!r}; there are {', '.join(CHECKS)}")
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device here; `make gpu-check ARGS=--dry-run` does what a CPU can", file=sys.stderr)
        return 2
    from gpu import environment

    device = "cpu" if options.dry_run else "cuda"
    about = environment(device)
    print(", ".join(f"{key} {value}" for key, value in about.items() if value), flush=True)
    rows = []
    for name in CHECKS:
        if name in wanted:
            rows.append(run_apart(name, device, options.dry_run))
            said = f": {rows[-1]['why']}" if rows[-1]["why"] else ""
            print(
                f"{rows[-1]['result']:<9} {name:<10} {rows[-1]['title']}{said} ({rows[-1]['seconds']:.0f} s)",
                flush=True,
            )
    counts = {result: sum(row["result"] == result for row in rows) for result in ("passed", "failed", "not here")}
    print(", ".join(f"{count} {result}" for result, count in counts.items()))
    if options.json:
        report = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "dry_run": options.dry_run, "environment": about}
        options.json.write_text(json.dumps({**report, "checks": rows}, indent=1) + "\n")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
