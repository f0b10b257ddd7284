"""Check before queueing that a run's phases fit into the memory of the cluster's GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.plan import EVALUATE
from launcher.profile import ClusterProfile
from launcher.record import Json
from launcher.rules import usable_nodes
from onediff.errors import UserError

if TYPE_CHECKING:
    from onediff.config.run import RunConfig


def check_memory(config: RunConfig, profile: ClusterProfile, plan: Json) -> None:
    """Raise UserError for a phase that does not fit on the minimum number of nodes. Needs a profile that names its GPUs."""
    if profile.gpu is None or not profile.gpus_per_node:
        return
    from onediff.plan.architecture import sizes_of
    from onediff.plan.gpus import gpu_named
    from onediff.plan.phase import plan_phase, setup_of

    gpu = gpu_named(profile.gpu)
    try:
        sizes_of(config.model)
    except UserError as error:
        print(f"memory not checked: {error}")
        return
    for name, part in plan["phases"].items():
        if name == EVALUATE:
            continue
        least, most = part["nodes"]
        ranks, (batch, micro) = part["tasks_per_node"], part["batch"]
        counts = (n for n in range(least, most + 1) if usable_nodes(n, ranks, part["tensor"], batch, micro) == n)
        nodes = next(counts, None)
        if nodes is None:
            continue
        found = plan_phase(config, name, setup_of(config, name, nodes * ranks, ranks), gpu)
        if not found.fits:
            needed, usable = found.memory.gpu / 1e9, found.usable_bytes / 1e9
            raise UserError(
                f"phases.{name}: needs {needed:.1f} GB per GPU on {nodes} nodes, but {gpu.name} has {usable:.1f}; "
                f"`onediff plan CONFIG --nodes {nodes} --per-node {ranks} --gpu {gpu.name} --suggest` looks for settings "
                "that fit; --no-memory-check queues it anyway"
            )
