"""One rank of the checkpoint tests: a small model trained by DeepSpeed through a list of actions given as JSON."""

import json
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")


class Net(torch.nn.Module):
    """A small network with a frozen layer, a tied use of one weight, odd sizes, dropout and a buffer.

    On `idle` more weights nothing depends.
    """

    def __init__(self, words: int = 13, width: int = 6, inner: int = 7, idle: int = 0) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(words, width)
        self.frozen = torch.nn.Linear(width, width)
        self.first = torch.nn.Linear(width, inner)
        self.norm = torch.nn.LayerNorm(inner)
        self.second = torch.nn.Linear(inner, width, bias=False)
        self.scale = torch.nn.Parameter(torch.tensor([1.0]))
        if idle:
            self.idle_weight = torch.nn.Parameter(torch.ones(idle))
        self.register_buffer("mean", torch.zeros(width))
        self.frozen.requires_grad_(False)

    def forward(self, ids: torch.Tensor, dropout: float) -> torch.Tensor:
        """[batch, tokens] → the mean loss of the next token."""
        x = self.frozen(self.embed(ids[:, :-1]))
        x = self.second(torch.nn.functional.dropout(torch.tanh(self.norm(self.first(x))), dropout))
        logits = self.scale * x @ self.embed.weight.T
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def engine_for(
    stage: int,
    precision: str,
    world: int,
    seed: int = 0,
    sizes: tuple = (),
    offload: dict | None = None,
    decay: float = 0.1,
):
    """The network under DeepSpeed, two parameter groups, gradient clipping; global batch of eight.

    `offload` is DeepSpeed's section for the optimizer, `decay` the weight decay of matrices.
    """
    import deepspeed

    config = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 8 // world,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 20},
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 10**9,
    }
    if precision == "bf16" and stage:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if offload is not None:
        config["zero_optimization"] |= {"offload_optimizer": offload, "sub_group_size": 300_000}
        config["zero_force_ds_cpu_optimizer"] = False
    torch.manual_seed(seed)
    context = deepspeed.zero.Init(config_dict_or_path=config, enabled=stage == 3)
    with context:
        model = Net(*sizes)
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and "weight" in n]
    plain = [p for n, p in model.named_parameters() if p.requires_grad and "weight" not in n]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.02)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)[0]
    if offload is not None and offload["device"] == "nvme":
        from onediff.zero.nvme import keep_gradients

        keep_gradients(engine.optimizer)
    return engine


def swaps_of(engine) -> list[int]:
    """Records the sub-groups that are swapped in from now on."""
    seen, swap_in = [], engine.optimizer._optimizer_states_and_gradient_swap_in

    def noted(group: int, *more) -> None:
        seen.append(group)
        swap_in(group, *more)

    engine.optimizer._optimizer_states_and_gradient_swap_in = noted
    return seen


def train(
    engine, first: int, last: int, rank: int, world: int, dropout: float = 0.0, after=lambda: None
) -> list[float]:
    """Takes steps `first` … `last - 1` on batches that depend only on the step; calls `after` after each; returns losses."""
    import torch.distributed as dist

    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(1000 + step)
        ids = torch.randint(0, 13, (8, 9), generator=generator)
        loss = engine(ids[rank::world], dropout)
        engine.backward(loss)
        for group in engine.optimizer.param_groups:
            group["lr"] = 0.02 / (1 + step / 10)
        engine.step()
        mean = loss.detach().float().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / world)
        after()
    return losses


def spoil(engine, state: str) -> None:
    """Makes one number on this rank infinite, in a weight or in the named optimizer state."""
    from onediff.zero.engine import ZeroEngine

    sharded = ZeroEngine(engine)

    with torch.no_grad():
        part = [part for part in sharded.shards() if part.owner is not None and part.piece.length][-1]
        (part.weight if state == "weight" else part.of(sharded.moments(part)[state]))[-1] = float("inf")


def take_copies(engine, nodes: Path, ranks, dropout: float, context: int) -> None:
    """Copies of steps 2 and 4 in memory, the second after the first has arrived, each rank on a node of its own.

    They are recorded as those of context groups of `context` ranks.
    """
    from onediff.training.checkpoint.copies import PeerCopies
    from onediff.zero.engine import ZeroEngine

    own = replace(ranks, local_rank=0, local_world=1)
    copies = PeerCopies(nodes / f"onediff-node{ranks.rank}", 2, own, None)
    copies.require_room(ZeroEngine(engine))
    for step in (2, 4):
        train(engine, step - 2, step, ranks.rank, ranks.world, dropout)
        assert copies.take(
            ZeroEngine(engine, context), step, {"step": step}, {"lanes": {ranks.rank: step}}, lambda: None
        )
    while not copies.arrived():
        time.sleep(0.01)


def load_copy(engine, nodes: list[str], ranks, newer_than: int, context: int) -> dict | None:
    """Resumes from the newest copy on `nodes`, one per rank; returns its `extra`, or None if there is no copy."""
    from onediff.training import checkpoint
    from onediff.training.checkpoint.copies import newest_copy
    from onediff.zero.engine import ZeroEngine

    own = replace(ranks, local_rank=0, local_world=1)
    joined = lambda extra, parts: {**extra, "lanes": [part["lanes"] for part in parts]}  # noqa: E731
    path = newest_copy(Path(nodes[ranks.rank]), own, newer_than, joined)
    return None if path is None else checkpoint.load_checkpoint(ZeroEngine(engine, context), path)


def main() -> None:
    """Runs the actions of argv[1] and writes the results of rank 0 to argv[2]."""
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.training import checkpoint
    from onediff.training.faults import TrainingFault
    from onediff.zero.engine import ZeroEngine

    ranks = initialize_distributed()
    results = []
    for action in json.loads(sys.argv[1]):
        stage, precision = action["stage"], action.get("precision", "fp32")
        sizes, offload = tuple(action.get("sizes", ())), action.get("offload")
        decay = action.get("decay", 0.1)
        engine = engine_for(stage, precision, ranks.world, action.get("seed", 0), sizes, offload, decay)
        result = {}
        try:
            if "load" in action:
                result["extra"] = checkpoint.load_checkpoint(ZeroEngine(engine), Path(action["load"]))
                result["groups"] = [(group["lr"], group["weight_decay"]) for group in engine.optimizer.param_groups]
            if "load_copy" in action:
                newer_than, context = action.get("newer_than", 0), action.get("context", 1)
                result["extra"] = load_copy(engine, action["load_copy"], ranks, newer_than, context)
            if "copies" in action:
                dropout, context = action.get("dropout", 0.0), action.get("context", 1)
                take_copies(engine, Path(action["copies"]), ranks, dropout, context)
                action = {**action, "from": 4}
            result["losses"] = train(
                engine, action.get("from", 0), action.get("to", 0), ranks.rank, ranks.world, action.get("dropout", 0.0)
            )
            # `save_each`: the same state under many names again and again, for a test that kills this process meanwhile.
            background = action.get("background", False)
            writer = checkpoint.CheckpointWriter(Path(action.get("save", "")), keep_last=2, background=background)
            if "file_limit" in action and ranks.rank == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (action["file_limit"], resource.RLIM_INFINITY))
            swapped_in = swaps_of(engine) if offload and offload["device"] == "nvme" else []
            for step in action.get("save_each", [action["to"]]) if "save" in action else []:
                writer.save(ZeroEngine(engine), step=step, extra={"lanes": [1, 2]})
                if "spoil" in action and ranks.rank == 1:
                    spoil(engine, action["spoil"])
            result["swapped_in"] = list(swapped_in)
            result["finished_before_the_next_step"] = checkpoint.latest_checkpoint(writer.folder) is not None
            if "then" in action:
                polled = []
                result["then"] = train(
                    engine,
                    action["to"],
                    action["then"],
                    ranks.rank,
                    ranks.world,
                    action.get("dropout", 0.0),
                    after=lambda: polled.append(writer.poll()),  # noqa: B023
                )
            writer.finish()
        except (ValueError, TrainingFault) as error:
            result["error"] = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        results.append(result)
        engine.destroy()
    if ranks.rank == 0:
        Path(sys.argv[2]).write_text(json.dumps(results))
    shutdown()


if __name__ == "__main__":
    main()
