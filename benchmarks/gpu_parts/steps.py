"""(b) Whole training steps of both phases. (c) The ratio to LLaVA on the same pairs, in the same process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gpu_parts.llava import Llava
from gpu_parts.measure import Record, Setting
from gpu_parts.models import SIZES, TINY, Size, build, model_config, pair_rows
from gpu_parts.optimizer import PlainSteps, checkpointed
from onediff.config.training import PhaseConfig
from onediff.data.rows import collate
from onediff.model.vision import encoder_layers
from onediff.training.optimizer import freeze

STEPS = 6
"""Steps whose median is reported, after two warm-up steps."""
COMPILED = "torch, layers compiled"


def whole_steps(setting: Setting) -> Iterator[Record]:
    """(b)"""
    sizes = TINY if setting.dry else SIZES
    cases = [(size, engine) for size in sizes for engine in ("deepspeed", "torch")]
    # Last, because compiling takes minutes.
    cases += [(size, COMPILED) for size in sizes if size.compiled]
    for size, engine in cases:
        record = {"model": size.name, "phase": size.phase, "engine": engine}
        yield from setting.attempt(record, lambda size=size, engine=engine: _ours(setting, size, engine))
        gc.collect()


def beside_llava(setting: Setting) -> Iterator[Record]:
    """(c)"""
    for size in TINY[1:] if setting.dry else [size for size in SIZES if size.phase == "two"]:
        record = {"model": size.name, "phase": size.phase}
        yield from setting.attempt(record, lambda size=size: _compared(setting, size))
        gc.collect()


def _compared(setting: Setting, size: Size) -> Record:
    ours = _ours(setting, size, "torch")
    gc.collect()
    theirs = _theirs(setting, size)
    found = {"pairs_per_second": ours["pairs_per_second"], "llava_pairs_per_second": theirs["pairs_per_second"]}
    found["ratio"] = ours["pairs_per_second"] / theirs["pairs_per_second"]
    return found | {"peak_gib": ours["peak_gib"], "llava_peak_gib": theirs["peak_gib"]}


def _ours(setting: Setting, size: Size, engine: str) -> Record:
    config = model_config(size, setting.dry)
    rows = pair_rows(config, size.pairs * 4, size.phase)
    batches = [collate(rows[start : start + size.pairs]) for start in range(0, len(rows), size.pairs)]
    model = build(config, setting.device, setting.dtype)
    make = {"deepspeed": _with_deepspeed, "torch": _with_torch, COMPILED: _with_compiled_layers}[engine]
    taken, waited = _timed(setting, make(setting, model, size), batches)
    tokens = sum(sum(len(row.token_ids) for row in rows[n : n + size.pairs]) for n in range(0, len(rows), size.pairs))
    found = _rates(setting, taken, size.pairs, tokens / len(batches))
    flops = _flops(config, size, batches)
    peak = _peak_tflops(setting)
    if flops is not None:
        found["tflops"] = flops / found["step_seconds"] / 1e12
        if peak is not None:
            found["mfu"] = found["tflops"] / peak
    return found | {"host_share": waited / sum(taken)}


def _rates(setting: Setting, taken: list[float], pairs: int, tokens: float) -> Record:
    step = statistics.median(taken)
    return {
        "step_seconds": step,
        "pairs_per_second": pairs / step,
        "tokens_per_second": tokens / step,
        "peak_gib": setting.peak_gib(),
    }


def _timed(setting: Setting, step: Callable[[Any], Any], batches: list[Any]) -> tuple[list[float], float]:
    """Seconds of each step, and the seconds in which the host was busy submitting it."""
    setting.peak_gib(reset=True)
    for batch in batches[:2]:
        step(batch)
    setting.wait()
    taken, given = [], 0.0
    for number in range(2 if setting.dry else STEPS):
        start = time.perf_counter()
        step(batches[number % len(batches)])
        given += time.perf_counter() - start
        setting.wait()
        taken.append(time.perf_counter() - start)
        if setting.left < 0 and len(taken) > 1:
            break
    return taken, given


def _with_torch(setting: Setting, model: Any, size: Size) -> Callable[[Any], Any]:
    """A step without DeepSpeed: the remaining training loop on one GPU."""
    _prepared(model, size)
    steps = PlainSteps(model)

    def step(batch: Any) -> Any:
        losses = model(batch.to(setting.device))
        (losses.sum() / batch.targets).backward()
        return steps.step()

    return step


def _with_compiled_layers(setting: Setting, model: Any, size: Size) -> Callable[[Any], Any]:
    """The same with the transformer layers of tower and language model compiled one by one, for any number of tokens."""
    for part in (model.vision.model, model.language.base_model):
        for layer in encoder_layers(part):
            layer.compile(dynamic=True)
    return _with_torch(setting, model, size)


def _with_deepspeed(setting: Setting, model: Any, size: Size) -> Callable[[Any], Any]:
    """A step of the training engine itself: ZeRO stage 1 on one rank."""
    from onediff.config.parallel import ParallelConfig
    from onediff.config.run import RunConfig
    from onediff.parallel.ranks import initialize_distributed
    from onediff.parallel.topology import create_topology
    from onediff.training.engine import Engine

    phase = {"mix": {"pairs": 1}, "train": size.trains, "steps": 100}
    phase |= {"global_batch": size.pairs, "micro_batch": size.pairs}
    config = RunConfig.model_validate(
        {
            "name": "bench",
            "model": model_config(size, setting.dry).model_dump(),
            "data": {"sets": {"pairs": "."}},
            "training": {
                "precision": "fp32" if setting.dry else "bf16",
                "activation_checkpointing": size.checkpointing,
            },
            "phases": {"bench": phase},
            "parallel": {"zero_stage": 1},
        }
    )
    parallel = ParallelConfig(zero_stage=1)
    topology = create_topology(parallel, initialize_distributed())
    model.train()
    engine = Engine(model, config, config.phases["bench"], topology)
    done = iter(range(10**9))
    return lambda batch: engine.step([batch], next(done), 100)


def _prepared(model: Any, size: Size) -> None:
    phase = PhaseConfig(mix={"pairs": 1}, train=size.trains, steps=1, global_batch=size.pairs, micro_batch=size.pairs)
    freeze(model, phase)
    model.train()
    if size.checkpointing:
        checkpointed(model.vision.model, model.language)


def _theirs(setting: Setting, size: Size) -> Record:
    config = model_config(size, setting.dry)
    rows = pair_rows(config, size.pairs * 4, size.phase)
    peer = Llava(config, setting.device, setting.dtype)
    if size.checkpointing:
        checkpointed(peer.model)
    batches = [peer.collated(rows[start : start + size.pairs]) for start in range(0, len(rows), size.pairs)]
    steps = PlainSteps(peer.model.train())

    def step(batch: dict[str, Any]) -> None:
        loss = peer.loss(batch)
        loss.backward()
        steps.step()
        loss.item()  # as the Trainer logs

    taken, _ = _timed(setting, step, batches)
    tokens = sum(len(row.token_ids) for row in rows) / len(batches)
    return _rates(setting, taken, size.pairs, tokens)


def _flops(config: Any, size: Size, batches: list[Any]) -> float | None:
    """Mean FLOPs of the model for one of `batches`, forward and backward once, frozen parts without a backward pass of
    their own; None if the counter is not there."""
    try:
        from onediff.plan.architecture import sizes_of
        from onediff.plan.flops import step_flops
        from onediff.plan.walk import Shape, Trained
    except ImportError:
        return None
    total = 0
    for batch in batches:
        rows, tokens = batch.token_ids.shape
        shape = Shape(rows, tokens, len(batch.images), batch.pairs, batch.targets)
        parts = step_flops(sizes_of(config), shape, Trained(size.trains))
        total += sum(part.model for part in parts.values())
    return total / len(batches)


def _peak_tflops(setting: Setting) -> float | None:
    """The GPU's peak according to its data sheet."""
    if setting.device.type != "cuda":
        return None
    from onediff.plan.gpus import gpu_of_device

    gpu = gpu_of_device(torch.cuda.get_device_name(setting.device))
    return None if gpu is None else gpu.tflops
