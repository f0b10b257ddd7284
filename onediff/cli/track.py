"""Send to MLflow what a run could not send while it was running.

  onediff track sync runs/demo
  onediff track sync runs/demo --uri https://mlflow.example.org     (the whole run, to another MLflow)

The journal in the run's folder is the source of truth; what MLflow already has is not sent twice.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from onediff.config.store import store_fault
from onediff.errors import UserError

if TYPE_CHECKING:
    from onediff.tracking.shipper import Shipper

PATIENCE_SECONDS = 120.0  # for one answer: a person waits for the result, not a training step
TRIES = 5  # attempts without progress before giving up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--uri", help="MLflow tracking URI (default: where the run is tracked)")


def run(args: argparse.Namespace) -> None:
    if args.uri is not None and (fault := store_fault(args.uri)):
        raise UserError(f"--uri: {fault}")
    for folder in args.runs:
        if not (folder / "tracking" / "run.json").is_file():
            raise UserError(f"{folder}: holds no record of a run (no tracking/run.json); name the folder of a run")
    for folder in args.runs:
        sync(folder.resolve(), args.uri)


def sync(folder: Path, uri: str | None) -> None:
    """Sends the journals of one run and prints a summary. Raises UserError if the store fails."""
    from onediff.tracking.identity import settle
    from onediff.tracking.sender import sole_sender
    from onediff.tracking.shipper import Shipper
    from onediff.tracking.store import one_try

    with sole_sender(folder, parent=0) as free:
        if not free:
            raise UserError(f"{folder}: its training is still running and sends them itself; wait until it has ended")
        settle(folder)
        shipper = Shipper(folder, uri, lambda line: print(f"{folder}: {line}", file=sys.stderr, flush=True))
        one_try(PATIENCE_SECONDS)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        send_all(shipper)
    print(f"{folder}: {shipper.shipped} records sent to {shipper.state.where.split()[0]}")


def send_all(shipper: Shipper) -> None:
    """Sends until everything has arrived. Raises UserError if there is no more progress."""
    failures = 0
    while True:
        before, why = shipper.state.left(), ""
        try:
            shipper.ship()
            shipper.carry(now=True)
        except Exception as error:  # a store, proxy or network can fail in any way; nothing is lost, so report it
            why = f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; "
        if not why and not shipper.state.left():
            return
        failures = failures + 1 if shipper.state.left() == before else 0
        if failures >= TRIES:
            raise UserError(f"{shipper.uri}: {why}unsent: {shipper.state.unsent()}")
        time.sleep(2.0 ** (failures - 2))
