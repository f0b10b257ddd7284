"""Checks and times all-reduces over the ranks of each node, or of all nodes.

    python -m onediff.parallel.all_reduce NOTE [--per-node] [--gpus]

Start it once per rank. The first rank of each group writes its measurements to NOTE; with `--per-node`, the file name is
prefixed with the node's name. Costs the import of torch and about a second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from onediff.parallel.ranks import own_device
from onediff.ranks import Ranks

ROUNDS = 20
BYTES = {"cuda": 256 << 20, "cpu": 8 << 20}
"""Size of the large all-reduce."""


def main(note: Path, per_node: bool, gpus: bool) -> None:
    ranks = Ranks.from_environment()
    if gpus and not torch.cuda.is_available():
        sys.exit("torch sees no GPU: the driver, the container and the build of torch do not match")
    visible = torch.cuda.device_count()
    device = torch.device("cuda", own_device(ranks, visible)) if visible else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    rank, world = (ranks.local_rank, ranks.local_world) if per_node else (ranks.rank, ranks.world)
    address = "127.0.0.1" if per_node else os.environ["MASTER_ADDR"]
    # Not the port of training, which may still be closing after a previous attempt.
    store = dist.TCPStore(address, int(os.environ["MASTER_PORT"]) + 1, world, rank == 0, timedelta(seconds=60))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    results = measured(rank, world, device)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        note.parent.mkdir(parents=True, exist_ok=True)
        file = note.with_name(f"{os.uname().nodename}.{note.name}") if per_node else note
        file.write_text(json.dumps(results))


def measured(rank: int, world: int, device: torch.device) -> dict[str, object]:
    """Measures the latency of an all-reduce of one number and the bus bandwidth of a large one, as NCCL's tests do."""
    few, many = torch.zeros(1, device=device), torch.zeros(BYTES[device.type] // 4, device=device)
    wanted = world * (world + 1) / 2
    seconds: dict[int, list[float]] = {few.numel(): [], many.numel(): []}
    for tensor, rounds in ((few, ROUNDS), (many, 3)):
        for _ in range(rounds + 1):  # the first one connects
            tensor.fill_(rank + 1)
            began = time.perf_counter()
            dist.all_reduce(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[tensor.numel()].append(time.perf_counter() - began)
            if not bool((tensor == wanted).all()):
                sys.exit(f"rank {rank}: the sum over {world} ranks is wrong: {tensor[0].item():g}, not {wanted:g}")
    few_seconds, many_seconds = (statistics.median(times[1:]) for times in seconds.values())
    pace = 2 * (world - 1) / world * BYTES[device.type] / many_seconds
    return {"world": world, "device": device.type, "latency_us": few_seconds * 1e6, "mb_per_second": pace / 1e6}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("note", type=Path)
    parser.add_argument("--per-node", action="store_true")
    parser.add_argument("--gpus", action="store_true")
    chosen = parser.parse_args()
    main(chosen.note, chosen.per_node, chosen.gpus)
