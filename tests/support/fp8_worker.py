"""One rank of the fp8 tests: engine steps at ZeRO-3 in several topologies, and with one rank a run that resumes."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

STEPS, PARTS = 3, ("delta", "language")
CASES = {"data": {}, "tensor": {"parallel.tensor": 2}, "sequence": {"parallel.tensor": 2, "parallel.sequence": True}}


def model_values() -> dict[str, Any]:
    """The tiny model with a language model that two ranks can cut into widths of multiples of 16."""
    from models import TINY

    wider = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 4, "initializer_range": 0.06}
    return {**TINY, "language": {**TINY["language"], "config": {**TINY["language"]["config"], **wider}}}


def engine_steps(ranks: Any, fp8: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """Losses and gradient norms of steps of four rows in fp32, the products of `fp8` aside."""
    from models import rows
    from small_run import config

    from onediff.config.model import ModelConfig
    from onediff.data.rows import collate
    from onediff.model.fp8 import multiply_in_fp8
    from onediff.parallel.topology import create_topology
    from onediff.training.engine import Engine
    from onediff.training.start import built

    run = config(Path("data"), STEPS, **{"phases.two.micro_batch": 1, "optimizer.schedule": "constant", **more})
    run = run.model_copy(update={"model": ModelConfig.model_validate(model_values())})
    phase, topology = run.phases["two"], create_topology(run.parallel, ranks)
    torch.manual_seed(0)
    model = built(run, run.model, "two", topology, filled_later=False)
    said = multiply_in_fp8(model, fp8)
    engine = Engine(model, run, phase, topology)
    made = [collate([row]) for row in rows("pair", "single", "pair", "text")]
    done = [engine.step(made[topology.dp_rank :: topology.dp_size], step, STEPS).figures()[0] for step in range(STEPS)]
    return {"said": said, **{key: [figures[key] for figures in done] for key in ("loss", "grad_norm")}}


def resumed_run(ranks: Any, data: str, folder: Path) -> None:
    """A phase in bf16 and fp8 in `folder`/run, and its second half once more in `folder`/again."""
    from small_run import config

    from onediff.parallel.topology import create_topology
    from onediff.runs.folder import RunFolder
    from onediff.training.prepare import prepare
    from onediff.training.run import open_tracker, run_phase
    from onediff.training.stop import StopRequest

    fp8 = {"training.precision": "bf16", "training.fp8": "[vision,delta,language]", "training.sample_captions": 0}
    run = config(Path(data), 4, **{**fp8, "phases.two.checkpoint_every": 2})
    run = run.model_copy(update={"phases": {"two": run.phases["two"]}})
    topology = create_topology(run.parallel, ranks)
    for name in ("run", "again"):
        made = RunFolder(folder / name)
        prepare(made, run)
        if name == "again":
            checkpoints = made.checkpoints("two")
            shutil.copytree(RunFolder(folder / "run").checkpoints("two"), checkpoints)
            shutil.rmtree(checkpoints / "step-00000004")
            (checkpoints / "latest").write_text("step-00000002")
        tracker = open_tracker(run, made, topology, "here")
        run_phase(run, "two", made, topology, tracker, StopRequest(), resume=name == "again")
        tracker.finish("FINISHED")


def main() -> None:
    """argv[1]: where the figures go, as JSON; argv[2], argv[3]: data sets and a folder for the run of a single rank."""
    from onediff.parallel.ranks import initialize_distributed, shutdown

    ranks = initialize_distributed()
    if ranks.world == 1:
        found = {"fp8": engine_steps(ranks, PARTS), "plain": engine_steps(ranks, ())}
        resumed_run(ranks, sys.argv[2], Path(sys.argv[3]))
    else:
        found = {name: engine_steps(ranks, PARTS, **more) for name, more in CASES.items()}
    if ranks.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    shutdown()


if __name__ == "__main__":
    main()
