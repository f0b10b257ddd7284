"""Four ranks, each a node of its own, the third of which sends and receives slowly; rank 0 writes what each measured."""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path


def main() -> None:
    """argv[1]: where the seconds of each rank go, as JSON."""
    import torch
    import torch.distributed as dist

    from onediff.parallel.agreement import gathered
    from onediff.ranks import Ranks
    from onediff.training.probes import Probes

    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    ranks = Ranks(rank=dist.get_rank(), world=dist.get_world_size(), local_rank=0, local_world=1)
    probes = Probes(torch.device("cpu"), ranks, side=64, touched=1 << 16)
    exchange = probes.exchange

    def slow_exchange(nodes: int) -> None:
        time.sleep(0.2 if ranks.rank == 2 else 0.0)  # its peers wait for it, as for a slow link
        exchange(nodes)

    probes.exchange = slow_exchange  # type: ignore[method-assign]
    found = gathered(probes.seconds())
    if ranks.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
