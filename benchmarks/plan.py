"""Compares the memory predicted by `onediff plan` with that of real steps, in DeepSpeed processes on gloo.

  python benchmarks/plan.py --json benchmarks/results/plan.json
  python benchmarks/plan.py --models demo --topologies 1x1 2x1

For each model, phase, ZeRO stage and T × D, real processes take two steps on rows of equal length. The peak of the second
step is the memory before it (every tensor that Python can reach, each storage once) plus the largest sum of allocations
minus frees during it, according to torch's profiler. (The profiler does not see frees in gloo's own threads, so the sum
covers one step only.) On a GPU, `torch.cuda.max_memory_allocated` is the same number. The target is 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Config only, weights are random: SmolLM2-135M (its config.json) behind DINOv2 ViT-S/14.
SMOLLM2 = {
    "vision": {
        "config": {
            "model_type": "dinov2",
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "image_size": 224,
            "patch_size": 14,
        },
        "levels": [4, 8, 12],
        "output_level": -2,
        "image": {"size": 112},
    },
    "delta": {"tokens": 32, "layers": 3, "width": 384, "heads": 6, "intermediate": 1536},
    "language": {
        "tokenizer": {"vocabulary": 512},
        "config": {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
    },
}
SHAPES = {"demo": (8, 96, 40), "smollm2": (2, 224, 50)}
"""Rows of a micro-batch, tokens of a row, targets of a row."""
TENSOR = {"demo": (1, 2), "smollm2": (1, 3)}


def settings(case: dict[str, Any]) -> list[str]:
    """The demo's configuration as overrides for one case."""
    rows = SHAPES[case["model"]][0]
    values = {
        "model": "models/tiny",
        "training.precision": case["precision"],
        "training.activation_checkpointing": case["checkpointing"],
        "parallel.tensor": case["tensor"],
        "parallel.sequence": case.get("sequence", False),
        "parallel.context": case.get("context", 1),
        "parallel.zero_stage": case["stage"],
        "phases.warm-up.matrices": "adamw",  # Muon needs whole matrices
        "phases.two.matrices": "adamw",
    }
    for phase in ("one", "two"):
        values[f"phases.{phase}.micro_batch"] = rows
        values[f"phases.{phase}.global_batch"] = rows * case["data"] * case["accumulation"]
    return [f"{key}={value}" for key, value in values.items()]


def configuration(case: dict[str, Any]) -> Any:
    """The run's configuration."""
    from onediff.config.compose import load_run
    from onediff.config.model import ModelConfig

    config = load_run("configs/demo.yaml", settings(case))
    if case["model"] == "smollm2":
        config = config.model_copy(update={"model": ModelConfig.model_validate(SMOLLM2)})
    return config


def shape_of(config: Any, case: dict[str, Any]) -> Any:
    """Every row is a pair."""
    from onediff.plan.walk import Shape

    rows, tokens, targets = SHAPES[case["model"]]
    return Shape(rows, tokens, 2 * rows, rows, rows * targets)


def planned(case: dict[str, Any]) -> dict[str, Any]:
    """Bytes by kind, and their total."""
    from onediff.plan.architecture import sizes_of
    from onediff.plan.memory import memory_of
    from onediff.plan.setup import Setup
    from onediff.plan.walk import Trained, walk

    config = configuration(case)
    phase = config.phases[case["phase"]]
    world = case["tensor"] * config.parallel.context * case["data"]
    setup = Setup(
        world,
        world,
        case["tensor"],
        case["stage"],
        phase.micro_batch,
        phase.global_batch,
        bf16=case["precision"] == "bf16",
        checkpointing=case["checkpointing"],
        sequence=config.parallel.sequence,
        context=config.parallel.context,
    )
    tape = walk(
        sizes_of(config.model),
        shape_of(config, case),
        Trained.of(phase),
        itemsize=setup.itemsize,
        tensor=setup.tensor,
        sequence=setup.sequence,
        context=setup.context,
    )
    memory = memory_of(tape, setup)
    return {**vars(memory), "peak": memory.gpu}


def work(several: list[dict[str, Any]], out: Path) -> None:
    """One rank: runs each case in turn with its own engine; rank 0 writes the results."""
    import torch

    from onediff.config.parallel import ParallelConfig
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.parallel.topology import create_topology

    torch.set_num_threads(1)
    ranks = initialize_distributed()
    case = several[0]
    parallel = ParallelConfig(
        tensor=case["tensor"], sequence=case.get("sequence", False), context=case.get("context", 1)
    )
    topology = create_topology(parallel, ranks)
    for case in several:
        found = one(case, topology)
        if ranks.rank == 0:
            with out.open("a") as file:
                file.write(json.dumps({**case, "measured": found}) + "\n")
    shutdown()


def one(case: dict[str, Any], topology: Any) -> dict[str, int]:
    """Two steps of one case, under the profiler from the first allocation on."""
    import gc

    from torch.profiler import ProfilerActivity, profile, record_function

    from onediff.training.engine import Engine
    from onediff.training.start import built

    config = configuration(case)
    phase = config.phases[case["phase"]]
    gc.collect()
    before = live_bytes()  # DeepSpeed frees an earlier engine only in part
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = built(config, config.model, case["phase"], topology, filled_later=False)
        engine = Engine(model, config, phase, topology)
        batch = batch_of(config, shape_of(config, case), model.vision.tokens)
        for number in range(2):
            if number == 1:
                gc.collect()
                between = live_bytes() - before
            with record_function(f"step {number}"):
                engine.step([batch] * case["accumulation"], number, 10)
    found = {"between": between, "peak": between + risen(profiler)}
    engine.sharded.deepspeed.destroy()
    del engine, model, batch, profiler
    gc.collect()
    return found


def batch_of(config: Any, shape: Any, image_tokens: int) -> Any:
    """A batch of that shape: every row has two images, deltas, and targets at its end."""
    import torch

    from onediff.data.batch import Batch

    size, deltas = config.model.vision.image.size, config.model.delta.tokens
    seats = torch.arange(shape.rows * shape.tokens).view(shape.rows, shape.tokens)
    targets = shape.targets // shape.rows
    return Batch(
        token_ids=torch.ones(shape.rows, shape.tokens, dtype=torch.int64),
        position_ids=torch.arange(shape.tokens).repeat(shape.rows, 1),
        segment_ids=None,
        images=torch.zeros(shape.images, 3, size, size, dtype=torch.uint8),
        image_places=seats[:, : 2 * image_tokens].flatten(),
        pairs=shape.images // 2,
        delta_places=seats[:, 2 * image_tokens : 2 * image_tokens + deltas].flatten(),
        target_places=seats[:, -targets - 1 : -1].flatten(),
        target_ids=torch.ones(shape.targets, dtype=torch.int64),
        target_sources=torch.zeros(shape.targets, dtype=torch.int64),
        info={"tokens": shape.rows * shape.tokens, "skipped": []},
    )


def live_bytes() -> int:
    """Bytes of all existing tensors, each storage once."""
    import gc

    import torch

    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type == "cpu" and thing.layout is torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def risen(profiler: Any) -> int:
    """Bytes at the peak of the last step, minus those at its beginning."""
    events = profiler.profiler.kineto_results.events()
    step = next(event for event in events if event.name() == "step 1")
    first, last = step.start_ns(), step.start_ns() + step.duration_ns()
    now = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        if first <= event.start_ns() <= last:
            now += event.nbytes()
            most = max(most, now)
    return most


def measured(several: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Starts the ranks for cases of one topology, and waits for them."""
    world = several[0]["tensor"] * several[0].get("context", 1) * several[0]["data"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seen.jsonl"
        ranks = []
        for rank in range(world):
            environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            environment |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            words = [sys.executable, __file__, "--ranks-of", json.dumps(several), "--json", str(out)]
            log = (Path(folder) / f"{rank}.log").open("w")
            ranks.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
        codes = [rank.wait(timeout=3600) for rank in ranks]
        lines = out.read_text().splitlines() if out.is_file() else []
        if len(lines) < len(several):
            print(f"ranks ended with {codes} at {several[len(lines)]}\n{(Path(folder) / '0.log').read_text()[-2000:]}")
        return [json.loads(line) for line in lines]


def cases(models: list[str], stages: list[int], precisions: list[str], topologies: list[str]) -> list[dict[str, Any]]:
    """Every stage and topology for each model, phase two; phase one, checkpointing, accumulation, sequence parallelism
    and context groups at some of them."""
    found: list[dict[str, Any]] = []
    for model in models:
        wide = TENSOR[model][1]
        places = [(1, 1), (1, 2), (wide, 1)]
        if topologies:
            places = [(int(t), int(d)) for t, d in (place.split("x") for place in topologies)]
        base = {"model": model, "phase": "two", "checkpointing": "none", "accumulation": 1}
        for precision in precisions:
            for tensor, data in places:
                same = {**base, "precision": precision, "tensor": tensor, "data": data}
                found += [{**same, "stage": stage} for stage in stages]
        if model != "demo":
            continue  # the rest is about shapes, not sizes
        tensor, data = places[min(1, len(places) - 1)]
        more = [{"phase": "one"}, {"checkpointing": "full"}, {"checkpointing": "selective"}, {"accumulation": 2}]
        for stage in sorted({stages[0], stages[-1]}):
            same = {**base, "precision": precisions[0], "stage": stage, "tensor": tensor, "data": data}
            found += [{**same, **other} for other in more]
            shared = {**same, "tensor": TENSOR[model][1], "data": 1, "sequence": True}
            found += [{**shared, "checkpointing": mode} for mode in ("none", "selective", "full")]
            found.append({**shared, "phase": "one"})
            found += [{**same, "data": 1, "context": 2, "checkpointing": mode} for mode in ("none", "full")]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo", "smollm2"], choices=list(SHAPES))
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--topologies", nargs="+", default=[], metavar="TxD", help="instead of those of each model")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--ranks-of", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ranks_of:
        work(args.ranks_of, args.json)
        return

    rows = []
    print(f"{'case':<58}{'plan MB':>9}{'seen MB':>9}{'ratio':>7}")
    wanted = cases(args.models, args.stages, args.precisions, args.topologies)

    def processes(case: dict[str, Any]) -> tuple[Any, ...]:
        # An earlier engine of another phase would change what a process still holds.
        return case["tensor"], case["data"], case["phase"], case.get("sequence", False), case.get("context", 1)

    for alike in dict.fromkeys(map(processes, wanted)):
        for case in measured([c for c in wanted if processes(c) == alike]):
            plan, found = planned(case), case["measured"]
            rows.append({**case, "planned": plan, "ratio": plan["peak"] / found["peak"]})
            name = "{model} {phase} {precision} stage {stage} T={tensor} D={data}".format(**case)
            name += f" x{case['accumulation']} {case['checkpointing']}" + " shared" * case.get("sequence", False)
            name += f" C={case['context']}" * ("context" in case)
            seen = found["peak"]
            print(f"{name:<58}{plan['peak'] / 1e6:>9.1f}{seen / 1e6:>9.1f}{rows[-1]['ratio']:>7.3f}", flush=True)
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    print(f"furthest off: {worst['ratio']:.3f}")
    if args.json:
        from machine import machine

        about = machine("torch", "deepspeed")
        args.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
