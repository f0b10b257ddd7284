"""Open MLflow on a folder of runs, even after the folder was moved.

  onediff mlflow runs
  onediff mlflow runs --port 5001

The store is `mlflow.db` in the folder, and the artifacts are in `mlflow-artifacts` next to it. If the folder was moved or
copied, the addresses of its images, tables and models are updated in the store.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from onediff.amounts import port
from onediff.errors import UserError

LIGHT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Turns off the workers for scheduled jobs, which runs do not use: the server then starts in half the time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=port, default=5000, metavar="N", help="port (default: 5000)")
    parser.add_argument(
        "--moved", action="store_true", help="update the addresses even if the store marks a run as running"
    )


def run(args: argparse.Namespace) -> int:
    words = server(args.runs.resolve(), args.host, args.port, args.moved)
    page = f"http://{args.host}:{args.port}/#/experiments?workflowType=machine_learning"
    print(f"MLflow is starting; then open {page} (Ctrl-C ends it)", flush=True)
    # The server replaces this process, so that it receives Ctrl-C and signals.
    os.execve(words[0], words, {**os.environ, **LIGHT})


def server(runs: Path, host: str, port: int, moved: bool) -> list[str]:
    """Fixes the addresses in the store in `runs`; returns the command that serves it. Raises UserError."""
    from onediff.tracking.moved import ARTIFACTS, former_places, is_running, readdress

    database = runs / "mlflow.db"
    if not database.is_file():
        raise UserError(f"{runs}: holds no mlflow.db; name a folder whose runs were tracked without a server")
    if former := former_places(database):
        if is_running(database) and not moved:
            raise UserError(
                f"{runs}: the artifacts' addresses are in {former[0].parent}, which does not exist here, and the "
                "store marks a run as running; wait for it to end, or add --moved if it is not running"
            )
        print(f"{runs}: {readdress(database)} addresses moved here from {former[0].parent}", file=sys.stderr)
    words = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", (runs / ARTIFACTS).as_uri()]
    return words
