"""A rank of a job whose rank 0 works first, for longer than the timeout of a collective."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

LIMIT, WORK = timedelta(seconds=4), 10


def main() -> None:
    """Rank 0 works, leaves a mark in the folder argv[1], and all ranks count themselves."""
    import torch
    import torch.distributed as dist

    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.zero.lean import deepspeed  # noqa: F401

    folder = Path(sys.argv[1])
    mark = folder / "done"
    (folder / f"rank-{os.environ['RANK']}").touch()
    while len(list(folder.glob("rank-*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.05)  # imports take longer than the limit

    def work() -> None:
        assert not dist.is_initialized()
        time.sleep(WORK)
        mark.write_text("done")

    initialize_distributed(timeout=LIMIT, first=work)
    assert mark.is_file()
    ranks = torch.ones(1)
    dist.all_reduce(ranks)
    assert int(ranks) == dist.get_world_size()
    shutdown()


if __name__ == "__main__":
    main()
