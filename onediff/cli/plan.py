"""Predict a run's memory, traffic, FLOPs and time before it is queued. Needs no GPU, no weights, no network.

  onediff plan configs/onediff_7b.yaml --gpus 64 --gpu h100-80g
  onediff plan configs/onediff_7b.yaml --gpus 8 --gpu a100-80g --suggest
  onediff plan configs/onediff_7b.yaml --nodes 4 --gpu l40s-48g parallel.tensor=2 --out plan.json
  onediff plan configs/onediff_7b.yaml --gpus 64 --rehearse 0/64

Memory is predicted for the largest possible micro-batch (rows of data.max_tokens), time for typical rows (--text).
--rehearse runs the training code of one rank at the run's real shapes, on tensors without memory, beside two other ranks.
It finds shapes that do not fit and ranks that would wait for each other forever, and measures memory.
Exit code 1 if a phase does not fit, 2 if a rehearsal finds a fault.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from onediff.amounts import at_least
from onediff.cli.output import add_json, with_json
from onediff.plan.rows import TEXT

if TYPE_CHECKING:
    from onediff.config.run import RunConfig
    from onediff.plan.phase import PhasePlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, name of a shipped one (configs/demo.yaml), or the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the file")
    parser.add_argument("--gpus", type=at_least(1), metavar="N", help="total number of GPUs")
    parser.add_argument("--nodes", type=at_least(1), metavar="N", help="number of nodes, instead of --gpus")
    parser.add_argument("--gpu", default="h100-80g", metavar="NAME", help="GPU model (default: h100-80g)")
    parser.add_argument(
        "--per-node", type=at_least(1), metavar="N", help="GPUs per node (default: typical for the GPU)"
    )
    parser.add_argument(
        "--text",
        type=at_least(1),
        default=TEXT,
        metavar="N",
        help=f"typical number of text tokens per row (default: {TEXT})",
    )
    parser.add_argument("--suggest", action="store_true", help="find the fastest settings that fit, and print them")
    parser.add_argument(
        "--rehearse", metavar="RANK/WORLD", help="also run the training code of this rank, without weights"
    )
    add_json(parser, "every figure")


def run(args: argparse.Namespace) -> int:
    return with_json(args, planned)


def planned(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Prints the plan; returns the exit code and the results for JSON."""
    from onediff.config.compose import load_run
    from onediff.plan.gpus import gpu_named
    from onediff.plan.missing import missing_data, missing_evaluated, missing_lines, missing_models, missing_splits
    from onediff.plan.phase import plan_phase, setup_of
    from onediff.plan.report import as_json, command, lines, totals
    from onediff.plan.suggest import suggest

    gpu = gpu_named(args.gpu)
    gpus, per_node = asked(args, gpu.per_node)
    config = load_run(args.config, args.overrides)
    check(config)
    if args.suggest:
        plans = suggest(config, gpu, gpus, per_node, args.text)
    else:
        setups = {name: setup_of(config, name, gpus, per_node) for name in config.phases}
        plans = [plan_phase(config, name, setup, gpu, args.text) for name, setup in setups.items()]
    for plan in plans:
        print("\n".join(lines(plan, gpu)), end="\n\n")
    print(totals(plans))
    if args.suggest:
        print(f"\n{command(plans, args.config, args.overrides)}")
    unfit = [plan.name for plan in plans if not plan.fits]
    if unfit:
        print(f"\nphase {', '.join(unfit)} does not fit; --suggest looks for settings that do")
    said = [args.config, *args.overrides]
    missing = missing_data(config.data, config.phases.values(), quick=True)
    missing += missing_splits(config.data, config.phases)
    missing += missing_evaluated(config, config.phases, after=True)
    if missing := [*missing, *missing_models(config.model, config.init, said)]:
        print("", *missing_lines(missing), sep="\n")
    result = {"gpu": gpu.name, "gpus": gpus, "phases": [as_json(plan) for plan in plans]}
    if args.rehearse is not None:
        found, result["rehearsal"] = rehearsed(args, config, plans, per_node)
        if found:
            return 2, result
    return 1 if unfit else 0, result


def check(config: RunConfig) -> None:
    """Raises UserError for what training would refuse of the configuration. Says so where torch is not installed."""
    from onediff.cli.quiet import quiet_libraries
    from onediff.errors import UserError

    try:
        quiet_libraries()
        from onediff.training.dry_build import faults
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("onediff"):
            raise
        print(
            f"onediff plan: {error.name} is not installed, so only sizes are checked: no keys of model.vision.config and "
            "model.language.config, no types of models, no tokenizer",
            file=sys.stderr,
        )
        return
    if found := list(faults(config)):
        raise UserError("; ".join(found))


def asked(args: argparse.Namespace, usual: int) -> tuple[int, int]:
    """Total GPUs, and GPUs per node (by default `usual`). Raises UserError if the options contradict each other."""
    from onediff.errors import UserError
    from onediff.rehearsal.whole import place

    per_node = args.per_node or usual
    if args.rehearse is not None:
        _, world = place(args.rehearse)
        if args.suggest:
            raise UserError("--rehearse runs the configuration as it is: leave out --suggest")
        if args.gpus is None and args.nodes is None:
            args.gpus = world
    if (args.gpus is None) == (args.nodes is None):
        raise UserError("give either --gpus or --nodes")
    gpus = args.gpus if args.gpus is not None else args.nodes * per_node
    if gpus > per_node and gpus % per_node:
        raise UserError(f"--gpus {gpus}: not a multiple of the {per_node} GPUs of a node; set --per-node")
    if args.rehearse is not None and world != gpus:
        raise UserError(f"--rehearse {args.rehearse}: the plan is for {gpus} GPUs")
    return gpus, per_node


def rehearsed(args: argparse.Namespace, config: RunConfig, plans: list[PhasePlan], per_node: int) -> tuple[bool, Any]:
    """Prints a rehearsal; returns whether it found a fault, and the results for JSON."""
    from onediff.rehearsal.report import lines
    from onediff.rehearsal.whole import place, rehearse

    print(flush=True)
    made = rehearse(config, args.config, args.overrides, *place(args.rehearse), per_node)
    print("\n".join(lines(made, plans)))
    for finding in made.findings:
        print(f"onediff plan: {finding}", file=sys.stderr)
    return bool(made.findings), made.as_json
