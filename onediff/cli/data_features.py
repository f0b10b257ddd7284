"""Compute a frozen tower's features for the images of data sets once, so that training need not.

  onediff data features configs/photos.yaml
  onediff data features mine.yaml data.sets.pairs='{path: data/mine, features: data/mine-features}'

For every data set of the configuration that sets `features`, reads the training split and writes its features to that
folder: one shard of features per shard of samples, for the layers that the model reads, in the precision of training.
Training with the same configuration reads them, and refuses them if the tower or its preprocessing has changed. An image
takes layers · tokens · width numbers, so 4 layers of CLIP ViT-L at 336 px take 4.7 MB in bf16.

After an interruption the same command continues; existing features are kept.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, name of a shipped one, or the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the configuration's")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the features of another tower or of other images"
    )


def run(args: argparse.Namespace) -> None:
    from onediff.cli.quiet import quiet_libraries
    from onediff.config.addresses import is_url
    from onediff.config.compose import load_run
    from onediff.errors import UserError

    config = load_run(args.config, args.overrides)
    folders = {name: one.features_folder for name, one in config.data.sets.items() if one.features_folder is not None}
    if not folders:
        name, one = next(iter(config.data.sets.items()))
        raise UserError(
            f"{args.config}: no data set names `features`; add 'data.sets.{name}={{path: {one.path}, features: DIR}}'"
        )
    for name, folder in folders.items():
        if is_url(folder):
            raise UserError(
                f"data.sets.{name}.features: {folder} is not a local folder; write the features to one, then copy them"
            )
    quiet_libraries()
    import torch

    from onediff.training.features import frozen_tower, write_features

    tower, digest = frozen_tower(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for name, folder in folders.items():
        made = write_features(config, name, tower, digest, args.overwrite)
        print(f"{folder}: features of {made.samples:,} samples in {len(made.shards)} shards, {made.bytes / 1e9:.2f} GB")
