"""Print a configuration in full: composed from its files, with overrides applied and every default written out.

onediff config show configs/demo.yaml
onediff config show runs/demo optimizer.lr=3e-4
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, name of a shipped one (configs/demo.yaml), or the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the file")


def run(args: argparse.Namespace) -> None:
    from onediff.config.compose import as_yaml, load_run

    print(as_yaml(load_run(args.config, args.overrides)), end="")
