"""Print the reference of all configuration keys.

onediff config --reference > docs/configuration.md
onediff config show configs/demo.yaml optimizer.lr=3e-4
onediff config explain phases.two.micro_batch
"""

from __future__ import annotations

import argparse

from onediff.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference", action="store_true", help="print every key as a Markdown page")


def run(args: argparse.Namespace) -> None:
    if not args.reference:
        raise UserError("use config --reference, config show CONFIG, or config explain KEY")
    from onediff.config.reference import reference

    print(reference(), end="")
