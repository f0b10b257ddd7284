"""Starts the ranks of a test as real processes on this machine."""

import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import forked

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(
    script: Path, arguments: Sequence[str], world: int, logs: Path, per_node: int | None = None
) -> list[forked.Forked]:
    """Starts `world` processes of a Python script with the environment of a launcher; each writes `logs/rank-N.log`.

    They take themselves for ranks of nodes with `per_node` ranks each, by default of one node.
    """
    per_node = per_node or world
    port = str(free_port())
    processes = []
    for rank in range(world):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % per_node),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(per_node),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
            "PYTHONPATH": str(ROOT),
        }
        log = logs / f"rank-{rank}.log"
        log.unlink(missing_ok=True)
        processes.append(forked.start([str(script), *arguments], environment, log, log))
    return processes


def end(processes: Sequence[forked.Forked]) -> None:
    """Kills processes that are still running."""
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def run_ranks(
    script: Path, arguments: Sequence[str], world: int, timeout: float = 300, per_node: int | None = None
) -> None:
    """Runs `world` ranks to their end; fails with the log of the first rank that failed."""
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        processes = start_ranks(script, arguments, world, logs, per_node)
        try:
            for process in processes:
                process.wait(timeout)
        finally:
            end(processes)
        for rank, process in enumerate(processes):
            text = (logs / f"rank-{rank}.log").read_text()
            assert process.returncode == 0, f"rank {rank} ended with {process.returncode}:\n{text[-6000:]}"
