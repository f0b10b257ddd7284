"""One rank that takes steps of which one has gradients that are not finite, and compares what the engine holds."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import torch


def main() -> None:
    """argv[1]: cases, each with settings of `parallel` (one `tensor` for all) and `training`, where the gradients are spoilt
    and with what; argv[2]: where rank 0 writes what each showed, as JSON."""
    import torch.distributed as dist
    from models import TINY, batch
    from small_run import config

    from onediff.config.model import ModelConfig
    from onediff.parallel.agreement import gathered
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.parallel.topology import create_topology
    from onediff.training.engine import Engine
    from onediff.training.start import built
    from onediff.zero.nvme import swap_folder
    from onediff.zero.protocol import by_swap_group

    ranks, here = initialize_distributed(), Path(sys.argv[2]).parent
    swaps = ExitStack()

    def engine_of(case: dict) -> Engine:
        more = {f"{part}.{key}": value for part in ("parallel", "training") for key, value in case[part].items()}
        run = config(Path("data"), 10, **{**more, "phases.two.global_batch": 8, "phases.two.pack": "null"})
        run = run.model_copy(update={"model": ModelConfig.model_validate(TINY)})
        topology = create_topology(run.parallel, ranks)
        torch.manual_seed(0)
        model = built(run, run.model, "two", topology, filled_later=False)
        return Engine(
            model, run, run.phases["two"], topology, swaps.enter_context(swap_folder(run.parallel, here, ranks))
        )

    def poison(engine: Engine, where: str, value: float) -> list:
        """On rank 1 alone: the loss's own gradient, or one element of one parameter's."""
        if ranks.rank != ranks.world - 1:
            return []
        if where == "loss":
            return [engine.model.register_forward_hook(lambda module, taken, losses: spoilt(losses, value))]
        parameter = dict(engine.model.named_parameters())[where]
        return [parameter.register_hook(lambda gradient: first(gradient, value))]

    def spoilt(losses, value):
        losses.register_hook(lambda gradient: gradient * value)
        return losses

    def first(gradient, value):
        gradient = gradient.clone()
        gradient.view(-1)[0] = value
        return gradient

    def state(engine: Engine) -> dict:
        """Weights, moments and counts of this rank, and the weights that the model computes with."""
        found = {}
        with engine.sharded.swap_in(changes=False) as swapped:
            for part in sorted(engine.sharded.shards(), key=by_swap_group):
                swapped.bring(part.swapped)
                found[part.name] = part.weight.clone()
                found |= {f"{part.name}/{k}": part.of(v).clone() for k, v in engine.sharded.moments(part).items()}
                found[f"{part.name}/steps"] = torch.tensor(engine.sharded.steps_of(part) or 0)
                used = getattr(part.parameter, "ds_tensor", part.parameter)
                found[f"{part.name}/used"] = used.detach().clone()
        return found

    def same(one: dict, other: dict) -> bool:
        return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    kinds = [("pair", "single"), ("pair", "pair"), ("single", "text"), ("pair", "text")]  # micro-batches of a step
    results = []
    for case in json.loads(sys.argv[1]):
        shared = case["parallel"]["tensor"] > 1  # both ranks compute the same micro-batches
        micro_batches = [batch(*kind) for kind in (kinds if shared else kinds[ranks.rank :: 2])]
        found = {"case": case}
        ends = []
        for poisoned in (True, False):
            engine = engine_of(case)
            torch.manual_seed(1)
            engine.step(micro_batches, 0, 10)
            if poisoned:
                before = state(engine)
                hooks = poison(engine, case.get("where", "loss"), float(case.get("value", "nan")))
                measured, _ = engine.step(micro_batches, 1, 10).metrics()
                for hook in hooks:
                    hook.remove()
                after = state(engine)
                found["figures"] = {key: measured[key] for key in ("loss", "grad_norm")}
                found["unchanged"] = all(gathered(same(before, after)))
                if not found["unchanged"]:
                    found["changed"] = [k for k in before if k not in after or not torch.equal(before[k], after[k])][:4]
            torch.manual_seed(2)  # dropout
            done = engine.step(micro_batches, 2, 10).metrics()[0]
            ends.append((state(engine), done["loss"], done["grad_norm"]))
            engine.close()
            swaps.close()
        found["goes on alike"] = all(gathered(same(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:]))
        found["after"] = [end[1:] for end in ends]
        results.append(found)
    if ranks.rank == 0:
        Path(sys.argv[2]).write_text(json.dumps(results))
    dist.barrier()
    shutdown()


if __name__ == "__main__":
    main()
