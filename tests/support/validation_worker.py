"""Two ranks that measure the same held-out loss: data-parallel under ZeRO-3, tensor-parallel, and row by row on one."""

import json
import sys
from pathlib import Path


def main() -> None:
    """argv[1]: rendered data; argv[2]: a tokenizer; argv[3]: where the losses go, as JSON, by rank 0."""
    import torch
    from small_run import config

    from onediff.data.rows import collate
    from onediff.model.build import build_processor
    from onediff.model.onediff import OneDiffModel
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.parallel.topology import create_topology
    from onediff.training.engine import Engine
    from onediff.training.start import built
    from onediff.training.validation import Validation

    ranks, found = initialize_distributed(), {}
    # Of each data set five rows in batches of two: one rank has a batch less than the other. Five pairs, five couples.
    asked = {"validate_every": 1, "validation": {"split": "test", "rows": 5, "sets": ["pairs", "singles"]}}
    values = {f"phases.two.{key}": json.dumps(value) for key, value in asked.items()}
    values |= {"model.delta.dropout": 0.5}
    for name, parallel in {
        "sharded": {"parallel.zero_stage": 3},
        "cut": {"parallel.zero_stage": 1, "parallel.tensor": 2},
    }.items():
        run = config(Path(sys.argv[1]), 4, **values, **parallel)
        topology = create_topology(run.parallel, ranks)
        processor, _ = build_processor(run.model, run.data, Path(sys.argv[2]))
        validation = Validation(run, "two", processor, topology)
        torch.manual_seed(0)
        engine = Engine(built(run, run.model, "two", topology, filled_later=False), run, run.phases["two"], topology)
        before = torch.get_rng_state()
        found[name] = [validation.losses(engine, 1) for _ in range(2)]
        assert torch.equal(before, torch.get_rng_state())
        assert engine.model.training
        engine.close()
    torch.manual_seed(0)
    bare, sums = OneDiffModel(run.model).eval(), {}
    with torch.no_grad():
        for number, stream in enumerate(validation.streams):
            rows = [stream.one(0, draw) for draw in range(5)]
            losses = torch.cat([bare(collate([row])) for row in rows])
            sums[validation.names[number]] = (losses.sum().item(), len(losses))
    found["row by row"] = {f"validation/loss/{name}": loss / count for name, (loss, count) in sums.items()}
    totals = [sum(one) for one in zip(*sums.values(), strict=True)]
    found["row by row"]["validation/loss"] = totals[0] / totals[1]
    if ranks.rank == 0:
        Path(sys.argv[3]).write_text(json.dumps(found))
    shutdown()


if __name__ == "__main__":
    main()
