"""Explain a configuration key: its type, default and meaning.

onediff config explain optimizer.lr
onediff config explain phases.two.micro_batch
onediff config explain weight_decay
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", help="a key, or its last part if no other key ends in it")


def run(args: argparse.Namespace) -> None:
    from onediff.config.reference import key_named

    key = key_named(args.key)
    print(f"{key.path}\n  type     {key.kind}\n  default  {key.default}\n  {key.meaning}")
