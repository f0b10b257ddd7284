"""Write a trained model as a folder of safetensors and configuration, loadable without the run.

  onediff export runs/demo my-model

`vision/` and `language/` in it are Hugging Face models of their own.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("target", type=Path, metavar="DIR", help="folder to write; an earlier export there is replaced")


def run(args: argparse.Namespace) -> int:
    from onediff.cli.quiet import quiet_libraries

    quiet_libraries()
    from onediff.training.export import export_run

    trained = export_run(args.run, args.target)
    print(f"{args.target}: {trained['run']}, phase {trained['phase']}, step {trained['step']}")
    return 0
