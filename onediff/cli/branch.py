"""Start a new run from a checkpoint of another, to continue with different settings.

  onediff branch runs/demo@200 runs/low-rate
  onediff branch runs/demo@best runs/longer
  onediff branch runs/demo@one:200 runs/other-mix
  onediff train runs/low-rate --resume optimizer.lr=1e-5

The new run takes the optimizer's state and the position in the data from the checkpoint. It has its own record in MLflow,
which names its origin. To start from the weights alone, set `init:` in a configuration.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from onediff.runs.address import Address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or RUN@best, RUN@STEP, RUN@PHASE:STEP")
    parser.add_argument("target", type=Path, metavar="NEW", help="folder of the new run")


def run(args: argparse.Namespace) -> None:
    from onediff.cli.quiet import quiet_libraries

    address = Address.of(args.run)
    address.require()
    quiet_libraries()
    from onediff.training.branch import branch

    start = branch(address, args.target)
    print(f"{args.target}: at step {start.step} of phase {start.phase} of {address.folder}")
    print(f"continue with: onediff train {shlex.quote(str(args.target))} --resume")
