"""Train the vision tower that the demo starts from, on the labels that the renderer writes with its scenes.

  onediff demo-tower configs/demo.yaml

Writes a Hugging Face folder to `model.vision.name` of the configuration. Takes about a minute on one core; after an
interruption the same command continues, and an existing tower is kept.
"""

from __future__ import annotations

import argparse

from onediff.amounts import at_least

STEPS = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, name of a shipped one (configs/demo.yaml), or the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the configuration's")
    parser.add_argument(
        "--steps", type=at_least(1), default=STEPS, metavar="N", help=f"optimizer steps (default: {STEPS})"
    )
    parser.add_argument(
        "--seed",
        type=at_least(0),
        default=0,
        metavar="N",
        help="seed of the initial weights and the order of samples (default: 0)",
    )


def run(args: argparse.Namespace) -> int:
    from onediff.cli.quiet import quiet_libraries
    from onediff.config.compose import load_run
    from onediff.errors import UserError

    config = load_run(args.config, args.overrides)
    if config.model.vision.name is None or config.model.vision.config is None:
        raise UserError(
            f"{args.config}: model.vision needs `name`, the folder to write the tower to, and `config`, its architecture"
        )
    quiet_libraries()
    from onediff.demo.tower import TowerTraining, make_tower

    accuracy = make_tower(config.model.vision, config.data, TowerTraining(steps=args.steps, seed=args.seed))
    told = ", ".join(f"{attribute} {100 * share:.1f} %" for attribute, share in accuracy.items())
    print(f"vision tower: {config.model.vision.name} (right on held-out objects: {told})")
    return 0
