"""Describe a data set: counts, sizes of images, lengths of captions, kinds of change.

onediff data stats data/mine
onediff data stats data/mine --html look.html               the same, with samples and their images
onediff data stats data/mine --tokens configs/demo.yaml     also lengths in this model's tokens, the cost of padding
                                                            and the gain of packing, for the first 4,096 samples
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.shards import data_sets
from data_prep.spread import cards
from data_prep.stats import Stats, data_set_stats, show_stats
from data_prep.workers import add_workers
from onediff.amounts import at_least
from onediff.cli.output import add_json, with_json
from onediff.data.manifest import Manifest
from onediff.outputs import check_output

if TYPE_CHECKING:
    from onediff.config.run import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a data set, on disk or at a URL")
    add_workers(parser)
    add_json(parser, "the statistics")
    parser.add_argument(
        "--tokens",
        metavar="CONFIG",
        help="also measure in tokens, as the last phase of this YAML file or run reads them",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write the statistics as a page with samples and their images"
    )
    parser.add_argument(
        "--samples", type=at_least(1), default=40, metavar="N", help="samples of each split on that page (default: 40)"
    )


def run(args: argparse.Namespace) -> int:
    return with_json(args, counted)


def counted(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Prints the statistics; returns the exit code and the results for JSON. Raises UserError."""
    check_output(args.html, "--html")
    config = None
    if args.tokens:
        from onediff.config.compose import load_run

        config = load_run(args.tokens, [])
    manifests = data_sets(args.folder)
    found = data_set_stats(manifests, args.processes)
    if config is not None:
        measure_tokens(config, args.tokens, manifests, found)
    print(show_stats(found))
    if args.html:
        from onediff.evaluation.report import write_gallery

        shown = [card for manifest in manifests for card in cards(manifest, args.samples)]
        write_gallery(args.html, shown, {}, title=manifests[0].name, block=show_stats(found), kind="split")
        print(f"{args.html}: a page with samples")
    return 0, {split: stats.fields() for split, stats in found.items()}


def measure_tokens(config: RunConfig, named: str, manifests: Sequence[Manifest], found: dict[str, Stats]) -> None:
    """Adds lengths in tokens to the statistics of every split, as the last phase of the configuration `named` reads them.

    Raises UserError.
    """
    from onediff.cli.quiet import quiet_libraries

    quiet_libraries()
    from onediff.training.data import data_set_lengths, processor_before_training

    processor, _ = processor_before_training(config, named)
    last = list(config.phases.values())[-1]
    for manifest in manifests:
        found[manifest.split].lengths = data_set_lengths(config.data, last, processor, manifest.folder)
