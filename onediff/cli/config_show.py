"""Print a configuration in full: composed from its files, with overrides applied and every default written out.

  onediff config show configs/demo.yaml
  onediff config show runs/demo optimizer.lr=3e-4

It checks every key and value of OneDiff's own settings. `onediff plan` also builds the model, and so checks the keys below
`model.vision.config` and `model.language.config`, which are transformers' own.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, name of a shipped one (configs/demo.yaml), or the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the file")


def run(args: argparse.Namespace) -> None:
    from onediff.config.compose import as_yaml, load_run
    from onediff.config.towers import check_levels

    config = load_run(args.config, args.overrides)
    depth = (config.model.vision.config or {}).get("num_hidden_layers")
    if isinstance(depth, int):
        check_levels(config.model.vision, depth)
    print(as_yaml(config), end="")
