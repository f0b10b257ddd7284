"""Write the weights of a checkpoint as ordinary safetensors files, one set for the whole model.

Resuming needs no conversion: any number of processes, tensor-parallel size and ZeRO stage can read a checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from onediff.amounts import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `onediff checkpoint convert`."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run: the latest checkpoint of its last phase")
    parser.add_argument(
        "folder", type=Path, help="new folder for model.safetensors, or for several files and their index"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="type of the written weights"
    )
    parser.add_argument(
        "--shard-gb", type=positive, default=5.0, metavar="N", help="size of the largest file, in 10^9 bytes"
    )


def run(args: argparse.Namespace) -> None:
    """Writes the files. Raises UserError if the checkpoint is damaged or the folder is not empty."""
    import torch

    from onediff.training.checkpoint.consolidate import consolidate
    from onediff.training.checkpoint.folder import checkpoints_below

    path = checkpoints_below(args.checkpoint)[-1]
    files = consolidate(path, args.folder, getattr(torch, args.dtype), int(args.shard_gb * 1e9))
    print(f"{path} → {args.folder}: {', '.join(file.name for file in files)}")
