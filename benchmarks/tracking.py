"""The cost of tracking for a training step, with a good, a bad and an absent MLflow server, and for a long run's journal.

  python benchmarks/tracking.py --json tracking.json

A step is a matrix product on one thread. Steps come in pairs, one with tracking and one without, in a random order, so that
other work on the machine affects both equally. During a step without tracking, the process that sends to MLflow is stopped,
so that its whole load falls on the steps with tracking. `slowdown` is the median over pairs of the time that tracking added,
as a share of the median step without it, with 95 % bootstrap bounds; `processor` is the same for the training thread's
processor time, which other processes hardly affect. The target is at most 2 %. `lost` counts the points that are missing
after `onediff track sync`. One server is real and is stopped for 30 s in between.
The long run logs 200,000 points: time per step, size of the journal, memory, and the time to send it to an embedded store.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

from machine import machine

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
from mlflow import MlflowClient

from onediff.cli.track import sync
from onediff.config.tracking import TrackingConfig
from onediff.tracking.tracker import Tracker

WARM_UP = 10
"""Warm-up pairs of steps."""
NAMES = (
    *("loss", "loss/scenes", "loss/pairs", "lr", "grad_norm", "target_tokens", "samples_per_second", "mfu"),
    *("tokens_per_second", "data_wait_share", "step_seconds", "skipped_samples"),
    *("progress/epochs/scenes", "progress/epochs/pairs"),
)


class BadServer:
    """Answers 500 at once, or after `seconds`."""

    def __init__(self, seconds: float) -> None:
        ended = self.ended = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                ended.wait(seconds)
                with contextlib.suppress(BrokenPipeError):  # the client has given up
                    self.send_error(500)

            do_GET = do_POST = answer

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()


class StoppedServer:
    """A real `mlflow server` that goes away for `seconds` once `stop_for` is called."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        folder.mkdir()
        self.start()

    def start(self) -> None:
        """Starts it and waits until it answers."""
        words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        words += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 300
        while True:
            try:
                with urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise SystemExit(f"the MLflow server does not start; see {self.folder}/log") from None
                time.sleep(0.5)

    def stop(self) -> None:
        """Ends it with its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop_for(self, seconds: float) -> None:
        """Ends it and starts it again after `seconds`."""
        self.stop()
        time.sleep(seconds)
        self.start()


def lost(folder: Path, points: int) -> int:
    """Points of a metric that are missing in MLflow after `onediff track sync` to a separate store."""
    uri = f"sqlite:///{folder}/after-sync.db"
    sync(folder, uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("benchmark")
    (phase,) = client.search_runs([experiment.experiment_id], "tags.onediff.kind = 'phase'")
    return points - len(client.get_metric_history(phase.info.run_id, "loss"))


def paired(
    folder: Path, uri: str, pairs: int, size: int, goes_on: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    """What tracking adds to a step, over `pairs` of steps; over more as long as `goes_on`."""
    config = TrackingConfig(uri=uri, request_seconds=15, finish_seconds=0, experiment="benchmark")
    tracker = Tracker.open(folder, config)
    assert tracker.sender is not None
    phase = tracker.phase("one")
    started_seconds = settled(tracker.sender.pid)
    draw = np.random.default_rng(0)
    work = draw.random((size, size), dtype=np.float32)
    wall: dict[bool, list[float]] = {True: [], False: []}
    processor: dict[bool, list[float]] = {True: [], False: []}
    calls: list[float] = []
    pair = -WARM_UP
    while (pair := pair + 1) <= pairs or goes_on():
        first = bool(draw.integers(2))
        for tracked in (first, not first):
            tracker.sender.send_signal(signal.SIGCONT if tracked else signal.SIGSTOP)
            began, used = time.perf_counter(), time.thread_time()
            figure = float((work @ work)[0, 0])
            if tracked:
                before = time.perf_counter()
                phase.log(pair + WARM_UP, dict.fromkeys(NAMES, figure))
                calls.append(time.perf_counter() - before)
            wall[tracked].append(time.perf_counter() - began)
            processor[tracked].append(time.thread_time() - used)
    tracker.sender.send_signal(signal.SIGCONT)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    points = len(calls)
    tracker.finish()
    return {
        "sender_start_processor_seconds": started_seconds,
        "pairs": float(len(wall[True]) - WARM_UP),
        "step_ms": 1e3 * statistics.median(wall[False]),
        **added("slowdown", wall),
        **added("processor", processor),
        "log_call_ms": 1e3 * statistics.median(calls),
        "peak_mib": peak,
        "points": float(points),
        "lost": float(lost(folder, points)),
    }


def settled(process: int) -> float:
    """Waits until the sender has imported MLflow and made its first request; returns its processor seconds so far.

    A run spends them once, at low priority, while it imports torch; they would distort a few hundred steps.
    """
    sender, before, deadline = psutil.Process(process), -1.0, time.monotonic() + 120
    while (used := sum(sender.cpu_times()[:2])) - before > 0.02 or used < 1:
        assert time.monotonic() < deadline, "the sender is still busy"
        before = used
        time.sleep(1)
    return used


def added(name: str, seconds: dict[bool, list[float]]) -> dict[str, float]:
    """Median of the additional time of a step with tracking over its neighbour without, as a share, and its 95 % bounds."""
    on, off = (np.array(seconds[tracked][WARM_UP:]) for tracked in (True, False))
    shares = (on - off) / np.median(off)
    drawn = np.random.default_rng(0).integers(len(shares), size=(2000, len(shares)))
    low, high = np.percentile(np.median(shares[drawn], axis=1), [2.5, 97.5])
    return {name: float(np.median(shares)), f"{name}_low": float(low), f"{name}_high": float(high)}


def long_run(folder: Path, points: int) -> dict[str, float]:
    """Cost of logging `points` metric points, and of sending them."""
    tracker = Tracker.open(folder, TrackingConfig(uri=f"sqlite:///{folder.parent}/mlflow.db", live=False))
    phase = tracker.phase("one")
    values = np.random.default_rng(0).random(len(NAMES)).tolist()
    steps = points // len(NAMES) + 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    for step in range(1, steps + 1):
        phase.log(step, dict(zip(NAMES, values, strict=True)))
    logging = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    tracker.finish()
    size = (folder / "tracking" / "phase-one.jsonl").stat().st_size
    began = time.perf_counter()
    sync(folder, None)
    return {
        "points": steps * len(NAMES),
        "microseconds_per_step": 1e6 * logging / steps,
        "journal_mb": size / 1e6,
        "journal_bytes_per_point": size / (steps * len(NAMES)),
        "memory_grown_mib": grown / 1024,
        "sending_seconds": time.perf_counter() - began,
    }


def show(name: str, figures: dict[str, float]) -> None:
    """Prints one server's figures on one line."""
    print(f"{name:<16} a step of {figures['step_ms']:.1f} ms", end="")
    for key in ("slowdown", "processor"):
        mean, low, high = (100 * figures[f"{key}{bound}"] for bound in ("", "_low", "_high"))
        print(f"  {key} {mean:+.2f} % ({low:+.2f} to {high:+.2f})", end="")
    print(
        f"  log() {figures['log_call_ms']:.3f} ms  {figures['peak_mib']:.0f} MiB  lost {figures['lost']:.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400, help="pairs of steps, with tracking and without, per server")
    parser.add_argument("--size", type=int, default=1000, help="side of the matrix whose product is a step's work")
    parser.add_argument("--points", type=int, default=200_000, help="metric points of the long run")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    found: dict[str, object] = {
        "machine": machine("mlflow", "numpy"),
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        failing, hanging = BadServer(0), BadServer(10)
        servers = {
            "embedded store": f"sqlite:///{place}/mlflow.db",
            "answers 500": failing.uri,
            "hangs 10 s": hanging.uri,
            "never there": "http://127.0.0.1:9",
        }
        for name, uri in servers.items():
            figures = paired(place / name.replace(" ", "-"), uri, args.pairs, args.size)
            found[name] = figures
            show(name, figures)
        failing.stop()
        hanging.stop()
        server = StoppedServer(place / "server")
        away = threading.Thread(target=server.stop_for, args=[30.0])
        away.start()
        figures = paired(place / "stopped-30-s", server.uri, args.pairs, args.size, away.is_alive)
        away.join()
        server.stop()
        found["stopped for 30 s"] = figures
        show("stopped for 30 s", figures)
        figures = long_run(place / "long", args.points)
        found["long run"] = figures
        print("long run        " + "  ".join(f"{key} {value:.1f}" for key, value in figures.items()))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
