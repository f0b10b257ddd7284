"""One rank that saves three checkpoints below argv[1], of which two stay, and loads the last, then those of argv[3:].

argv[2] gets the operations below argv[1] of each rank: of the third save, and of each load.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from checkpoint_worker import engine_for, train
from file_operations import FileOperations


def main() -> None:
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.training.checkpoint import CheckpointWriter, load_checkpoint
    from onediff.zero.engine import ZeroEngine

    ranks = initialize_distributed()
    folder = Path(sys.argv[1])
    own = folder / f"of-{ranks.world}"
    engine = ZeroEngine(engine_for(3, "fp32", ranks.world))
    train(engine.deepspeed, 0, 1, ranks.rank, ranks.world)
    writer = CheckpointWriter(own, keep_last=2, background=False)
    for step in (1, 2):
        writer.save(engine, step=step, extra={})
    operations = FileOperations(folder)
    last = writer.save(engine, step=3, extra={})
    mine = [operations.taken()]
    for path in (last, *map(Path, sys.argv[3:])):
        load_checkpoint(engine, path)
        mine.append(operations.taken())
    counts = [None] * ranks.world
    dist.all_gather_object(counts, mine)
    if ranks.rank == 0:
        Path(sys.argv[2]).write_text(json.dumps(counts))
    shutdown()


if __name__ == "__main__":
    main()
