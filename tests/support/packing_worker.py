"""One rank of the packing tests: losses and gradients at T = 2 of samples alone and packed."""

import sys
from pathlib import Path


def main() -> None:
    """argv[1]: where each rank writes its results."""
    import torch
    from models import TINY, rows
    from packed import KINDS, gradients

    from onediff.config.model import ModelConfig
    from onediff.config.parallel import ParallelConfig
    from onediff.data.rows import collate, collate_packed
    from onediff.model.onediff import OneDiffModel
    from onediff.parallel.placement import Placement
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.parallel.topology import create_topology

    ranks = initialize_distributed()
    placement = Placement(create_topology(ParallelConfig(tensor=2), ranks))
    torch.manual_seed(0)
    model = OneDiffModel(ModelConfig.model_validate(TINY), placement=placement).eval()
    placement.settle(model)
    made = rows(*KINDS)
    for name, batch in (("alone", collate(made)), ("packed", collate_packed([made[:3], made[3:]], 120))):
        torch.save(gradients(model, batch), Path(sys.argv[1]) / f"{ranks.rank}-{name}.pt")
    shutdown()


if __name__ == "__main__":
    main()
