"""Two ways to split a language model over ranks, compared with one rank: this project's layers, and DeepSpeed's AutoTP.

  python benchmarks/autotp.py --json benchmarks/results/autotp.json

A narrow model of each family takes a few AdamW steps in fp32, on real gloo processes: on one rank with plain torch, then at
T = 2 with each method and ZeRO stage. Prints the largest relative difference of losses and gradient norms from those of the
single rank, the largest difference of a weight after the last step, the bytes that a rank keeps between steps (weights,
gradients, optimizer states), and the median time of a step. Both ranks of a tensor group get the same rows.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine

FAMILIES = ("llama", "qwen2", "qwen3", "gemma")
STAGES = (1, 3)
STEPS, ROWS, TOKENS, CLIP, RATE = 5, 4, 64, 0.5, 1e-2
SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
}


def architecture(family: str) -> Any:
    from onediff.model.lean import transformers

    return transformers.AutoConfig.for_model(family, **SMALL)


def whole(family: str) -> Any:
    """The model with all its weights, the same in every process."""
    import torch

    from onediff.model.lean import transformers

    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(
        architecture(family), attn_implementation="eager", dtype=torch.float32
    )


def rows(step: int) -> Any:
    import torch

    return torch.randint(SMALL["vocab_size"], (ROWS, TOKENS), generator=torch.Generator().manual_seed(step))


def loss_of(model: Any, ids: Any) -> Any:
    from torch.nn import functional as F

    logits = model(input_ids=ids, use_cache=False).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def alone(family: str, out: Path) -> dict[str, Any]:
    """One rank, plain torch; its weights go to `out`."""
    import torch

    model = whole(family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    losses, norms, seconds = [], [], []
    for step in range(STEPS):
        began = time.perf_counter()
        loss = loss_of(model, rows(step))
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - began)
    torch.save(model.state_dict(), out / f"{family}.pt")
    return {"losses": losses, "norms": norms, "seconds": statistics.median(seconds)}


def settings(stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 1_000_000},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def ours(family: str, stage: int, out: Path, topology: Any) -> dict[str, Any]:
    """This project's layers: Megatron-core's by the model's own plan, DeepSpeed's engine around them."""
    import torch

    from onediff.model.lean import transformers
    from onediff.parallel.loss import Logits, target_loss, with_loss
    from onediff.parallel.materialize import InMemory, place
    from onediff.zero.engine import ZeroEngine

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(architecture(family), attn_implementation="eager")
    start = InMemory(whole(family).state_dict())
    zero = settings(stage)
    model = place(model, start, topology, zero_config=zero if stage == 3 else None)
    with_loss(model.get_output_embeddings(), Logits())
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    engine = ZeroEngine.start(model, optimizer, zero, topology)

    def loss(ids: Any) -> Any:
        hidden = engine.module.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        return target_loss(engine.module.get_output_embeddings(), hidden, ids[:, 1:].flatten(), None).mean()

    # Compute inside the engine's forward pass, which runs ZeRO-3's hooks.
    plain, engine.module.forward = engine.module.forward, loss
    made = steps(engine.deepspeed, loss_by=engine)
    engine.module.forward = plain
    final = InMemory(torch.load(out / f"{family}.pt"))
    distance = 0.0
    for shard in engine.shards():
        wanted = torch.empty(shard.piece.length)
        final.fill(shard.name, shard.piece, wanted)
        distance = max(distance, float((shard.weight - wanted).abs().max()) if len(wanted) else 0.0)
    made |= {"weights": distance, "bytes": held(engine)}
    engine.close()
    return made


def theirs(family: str, stage: int, out: Path, topology: Any) -> dict[str, Any]:
    """AutoTP as in DeepSpeed's documentation: one key of its configuration."""
    import torch

    from onediff.zero.engine import ZeroEngine
    from onediff.zero.lean import deepspeed

    model = whole(family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    keys = settings(stage) | {"tensor_parallel": {"autotp_size": topology.tp_size}}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=keys, dist_init_required=False)
    made = steps(engine, loss_by=None)
    if stage == 3:
        state = engine._zero3_consolidated_16bit_state_dict()
    else:
        state = engine._replace_module_consolidated_state_dict()
    final = torch.load(out / f"{family}.pt")
    made["bytes"] = held(ZeroEngine(engine))
    if state is not None:
        made["weights"] = max(float((state[name].float() - tensor).abs().max()) for name, tensor in final.items())
    return made


def steps(engine: Any, loss_by: Any) -> dict[str, Any]:
    losses, norms, seconds = [], [], []
    for step in range(STEPS):
        began, ids = time.perf_counter(), rows(step)
        loss = loss_of(engine, ids) if loss_by is None else loss_by(ids)
        engine.backward(loss)
        engine.step()
        norms.append(float(engine.get_global_grad_norm()))
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - began)
    return {"losses": losses, "norms": norms, "seconds": statistics.median(seconds)}


def held(engine: Any) -> int:
    """Weights and optimizer states between steps."""
    from onediff.rehearsal.held import size_of
    from onediff.zero import alone as by_zero

    return size_of([*by_zero.weights(engine), *by_zero.optimizer_states(engine)])


def rank(out: Path) -> None:
    import torch

    from onediff.config.parallel import ParallelConfig
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.parallel.topology import create_topology

    torch.set_num_threads(1)
    way = os.environ["WAY"]
    ranks = initialize_distributed(tensor=2)
    topology = create_topology(ParallelConfig(tensor=ranks.world), ranks)
    made = []
    for family in FAMILIES:
        if way == "alone":
            made.append({"family": family, **alone(family, out)})
        for stage in STAGES if way != "alone" else ():
            try:
                found = (ours if way == "ours" else theirs)(family, stage, out, topology)
            except Exception as error:  # an unsupported case is a result
                found = {"fault": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            made.append({"family": family, "stage": stage, **found})
            gc.collect()
    if ranks.rank == 0:
        (out / f"{way}.json").write_text(json.dumps(made))
    shutdown()


def start(way: str, world: int, out: Path) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for number in range(world):
        environment = os.environ | {
            "WAY": way,
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        processes.append(subprocess.Popen([sys.executable, __file__, "--rank", str(out)], env=environment))
    codes = [process.wait() for process in processes]
    assert not any(codes), f"{way}: ranks ended with {codes}"
    found: list[dict[str, Any]] = json.loads((out / f"{way}.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.rank:
        rank(args.rank)
        return
    with tempfile.TemporaryDirectory() as scratch:
        one = {row["family"]: row for row in start("alone", 1, Path(scratch))}
        cases = [{"way": way, **row} for way in ("ours", "theirs") for row in start(way, 2, Path(scratch))]
    for case in cases:
        if "fault" not in case:
            reference = one[case["family"]]
            for key in ("losses", "norms"):
                case[f"{key}_off"] = max(abs(a - b) / b for a, b in zip(case[key], reference[key], strict=True))
        print({key: value for key, value in case.items() if key not in ("losses", "norms")})
    if args.json:
        about = machine("torch", "deepspeed", "transformers")
        args.json.write_text(json.dumps({"machine": about, "alone": one, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
