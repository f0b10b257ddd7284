"""Prints a rehearsal. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from onediff.plan.phase import PhasePlan
from onediff.plan.setup import Setup
from onediff.rehearsal.role import Played
from onediff.rehearsal.whole import Rehearsal

NEAR = 0.1
"""The plan's memory counts as right if it is within this fraction of the rehearsed peak."""


def lines(made: Rehearsal, plans: list[PhasePlan]) -> Iterator[str]:
    """For each phase: what was run, its collectives, its memory, and the verdict."""
    for phase, plan in zip(made.phases, plans, strict=True):
        setup = plan.setup
        yield f"phase {phase.name}, rehearsed by rank {made.rank} of {made.world}"
        if phase.fault is None:
            run = f"{phase.rehearsed} of {phase.micro_batches} micro-batches of {phase.rows}"
            yield f"  {'run':<12}{run}; {phase.seconds:.0f} s"
            for kind, peer in made.peers.items():
                rows = "rows of text only" if kind == "data" else "the same rows"
                depth = "" if made.compared_layers is None else f", with {made.compared_layers} language layers"
                yield f"  {'beside':<12}rank {peer} of its {kind} group, with {rows}{depth}"
            for group, of_group in sent(phase).items():
                counts = ", ".join(f"{count} {op} of {_gb(size)} GB" for op, (count, size) in of_group.items())
                yield f"  {'collectives':<12}per step over {group}: {counts}"
            gathered, reduced = data_traffic(phase, setup)
            planned = plan.traffic
            sizes = f"weights {_gb(gathered)} GB, planned {_gb(planned.gather)}; "
            sizes += f"gradients {_gb(reduced)} GB, planned {_gb(planned.reduce)}"
            yield f"  {'traffic':<12}{sizes}"
            yield f"  {'memory':<12}{_memory(phase, plan)}"
            lanes = phase.lanes
            yield f"  {'data':<12}{len(lanes)} of {setup.global_batch} rows per step: {_few(lanes)}"
        own = [finding for finding in made.findings if finding.startswith(f"phase {phase.name}:")]
        yield f"  {'verdict':<12}{'; '.join(own) if own else 'nothing found'}"
        yield ""


def sent(phase: Played) -> dict[str, dict[str, tuple[int, int]]]:
    """Number and bytes of the collectives of a whole step, by group and kind, for every step but a phase's first."""
    found: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    begin = 0
    for until, times in phase.times:
        for op, group, _, _, size in phase.step[begin:until] if times else ():
            count, total = found[group].get(op, (0, 0))
            found[group][op] = count + times, total + times * size
        begin = until
    return dict(found)


def data_traffic(phase: Played, setup: Setup) -> tuple[float, float]:
    """Bytes of weights and of gradients that a rank sends per step, in rings over all ranks that ZeRO shards over, or
    over those on its node."""
    found, ranks, sharing = sent(phase), setup.copies, setup.sharing
    calls = found["data"] if "data" in found else found["world"]
    sizes = defaultdict(float, {op: (ranks - 1) / ranks * size for op, (_, size) in calls.items()})
    near = found["node"]["all_gather"][1] * (sharing - 1) / sharing if sharing else 0.0
    return sizes["all_gather"] + near, sizes["reduce_scatter"] + sizes["reduce"] + 2 * sizes["all_reduce"]


def beyond(phase: Played, plan: PhasePlan) -> float:
    """The plan's error as a fraction of the rehearsed peak, counting host memory of offloaded state."""
    planned = plan.memory.gpu + plan.memory.host
    return abs(planned - phase.held.peak) / max(1, phase.held.peak)


def _memory(phase: Played, plan: PhasePlan) -> str:
    held, memory = phase.held, plan.memory
    text = f"weights {_gb(held.weights)} GB, gradients {_gb(held.gradients)}, optimizer {_gb(held.optimizer)}; "
    text += f"peak {_gb(held.peak)} GB, planned {_gb(memory.gpu + memory.host)}"
    off = 100 * beyond(phase, plan)
    return text + (
        f" ({off:.0f} % off)" if off <= 100 * NEAR else f"; the plan is {off:.0f} % off, rely on the rehearsal"
    )


def _few(lanes: list[int]) -> str:
    shown = ", ".join(map(str, lanes[:4]))
    return f"lanes {shown}" + (", …" if len(lanes) > 4 else "")


def _gb(amount: float) -> str:
    gb = amount / 1e9
    return f"{gb:.0f}" if gb >= 100 else f"{gb:.1f}" if gb >= 1 else f"{gb:.2g}"
