"""Two ranks that count host synchronisations in complete optimizer steps, at each ZeRO stage, as on a GPU."""

import json
import sys
from pathlib import Path


def main() -> None:
    """argv[1]: where rank 0's counts go, as JSON: by stage, by who waited for what. argv[2]: the tensor-parallel size."""
    import pretend_gpu

    pretend_gpu.install()
    from models import TINY, batch
    from small_run import config

    from onediff.config.model import ModelConfig
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.parallel.topology import create_topology
    from onediff.training.engine import Engine
    from onediff.training.start import built

    ranks, found = initialize_distributed(), {}
    tensor = int(sys.argv[2])
    for stage in range(4):
        words = {"parallel.zero_stage": stage, "parallel.tensor": tensor}
        # Else the parameters of a model as small as this are never cut, and never gathered.
        words["parallel.deepspeed"] = "{stage3_param_persistence_threshold: 0}"
        words |= {"training.precision": "bf16", "optimizer.kernel": "torch"}
        run = config(Path("data"), 10, rows=4 * ranks.world // tensor, **words)
        run = run.model_copy(update={"model": ModelConfig.model_validate(TINY)})
        phase = run.phases["two"]
        topology = create_topology(run.parallel, ranks)
        engine = Engine(built(run, run.model, "two", topology, filled_later=False), run, phase, topology)
        micro_batches = [batch("pair", "single"), batch("pair", "pair")]
        # The third step is the first that DeepSpeed's timers look at.
        for step in range(2):
            engine.step(micro_batches, step, 10)
        with pretend_gpu.counted() as waits:
            engine.step(micro_batches, 2, 10)
            waits.found.clear()  # what is made once and kept is not counted
            engine.step(micro_batches, 3, 10)
        found[stage] = {f"{where}: {what}": count for (what, where), count in sorted(waits.found.items())}
    if ranks.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    shutdown()


if __name__ == "__main__":
    main()
