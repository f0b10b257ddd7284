"""The defaults of training on a GPU, and the files that it leaves when memory runs out or a collective hangs."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpu_parts.measure import Setting

from gpu_checks.outcome import NotHere, Wrong
from launcher.flight import read_record
from onediff.parallel.accelerator import FLIGHT_RECORD
from onediff.parallel.ranks import initialize_distributed, shutdown
from onediff.training.memory import snapshot_on_out_of_memory


def check(setting: Setting) -> dict[str, Any]:
    """Joins ranks as a run does, sums once, reads NCCL's record, and fills the memory."""
    with tempfile.TemporaryDirectory() as folder:
        initialize_distributed(flight_records=Path(folder))
        dist.all_reduce(torch.ones(4, device=setting.device))
        record = Path(folder) / f"{FLIGHT_RECORD}0"
        record.write_bytes(torch._C._distributed_c10d._dump_fr_trace())
        sums = {group: one.latest for group, one in read_record(record).items()}
        if setting.device.type != "cuda":
            shutdown()
            raise NotHere("a CPU has no GPU memory to fill; the record of the sum can be read", collectives=sums)
        growing = torch.cuda.memory._snapshot()["allocator_settings"]["expandable_segments"]
        snapshot = Path(folder) / "memory.pickle"
        try:
            with snapshot_on_out_of_memory(snapshot):
                kept = [torch.ones(1 << 20, device=setting.device) for _ in range(4)]
                torch.empty(1 << 45, device=setting.device)
        except torch.OutOfMemoryError:
            del kept
        shutdown()
        if not snapshot.is_file():
            raise Wrong("no snapshot of the full memory was written")
        blocks = [block for segment in pickle.loads(snapshot.read_bytes())["segments"] for block in segment["blocks"]]
        named = sum(any("defaults.py" in frame["filename"] for frame in block.get("frames", [])) for block in blocks)
    found = {"growing_segments": growing, "collectives": sums, "blocks_named_by_their_line": named}
    if not growing:
        raise Wrong("segments do not expand", **found)
    if not named:
        raise Wrong("the snapshot does not name the lines that allocated memory", **found)
    return found
