"""Check the size and checksum of every checkpoint file; exit code 2 if one is damaged."""

from __future__ import annotations

import argparse
from pathlib import Path

from onediff.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `onediff checkpoint verify`."""
    parser.add_argument("path", type=Path, help="a run, a folder of checkpoints, or one checkpoint")


def run(args: argparse.Namespace) -> None:
    """Prints one line per checkpoint. Raises UserError if any is damaged."""
    from onediff.training.checkpoint.folder import checkpoints_below
    from onediff.training.checkpoint.manifest import verify_checkpoint

    paths = checkpoints_below(args.path)
    faults = []
    for path in paths:
        try:
            manifest = verify_checkpoint(path)
        except UserError as fault:
            faults.append(str(fault))
            if len(paths) > 1:
                print(f"damaged  {fault}")
        else:
            print(f"good     {path}  {len(manifest.files)} files, {manifest.bytes / 1e6:.1f} MB")
    if faults:
        raise UserError(faults[0] if len(paths) == 1 else f"{len(faults)} of {len(paths)} checkpoints are damaged")
