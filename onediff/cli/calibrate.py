"""Measure how far a model can be trusted and store the result beside its weights.

  onediff calibrate runs/demo --about "rendered scenes"
  onediff calibrate my-model --data data/mine --split test
  onediff calibrate runs/demo --held-out data/mine     pairs like those that the model will see, with their changes

Captions then come with a confidence, the share of similar captions that were right on held-out pairs, or with a warning if
an image is unlike the training images. A model that invents changes on the held-out pairs answers from then on that nothing
has changed where that makes more captions right. Later exports of the same checkpoint include the result.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from onediff.amounts import at_least
from onediff.errors import UserError
from onediff.runs.address import Address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run, RUN@best or RUN@STEP of it, or an export")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data set (default: the run's training data sets)")
    parser.add_argument(
        "--held-out", type=Path, metavar="DIR", help="data set of the held-out pairs (default: the training data)"
    )
    parser.add_argument("--split", metavar="NAME", help="split of the held-out pairs (default: val, else test)")
    parser.add_argument("--about", metavar="TEXT", help="what the training images show, for the warning")
    parser.add_argument("--images", type=at_least(1), default=2000, metavar="N", help="training images (default: 2000)")
    parser.add_argument("--pairs", type=at_least(1), default=500, metavar="N", help="held-out pairs (default: 500)")
    parser.add_argument("--batch-size", type=at_least(1), default=16, metavar="N", help="pairs at once (default: 16)")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")


def run(args: argparse.Namespace) -> int:
    from onediff.cli.quiet import quiet_libraries
    from onediff.data.heldout import HeldOut, first_with_pairs
    from onediff.data.manifest import read_manifest

    Address.of(args.model).require()
    trained_on = training_splits(args.model, args.data)
    splits = [args.split] if args.split else ["val", "test"]
    sets = [args.held_out] if args.held_out else [folder.parent for folder in trained_on]
    found = ((split, first_with_pairs(sets, split)) for split in splits)
    held_out = next((folder / split for split, folder in found if folder is not None), None)
    if held_out is None:
        where = f"no pairs in {' or '.join(splits)} of {', '.join(map(str, sets))}"
        if args.held_out:
            raise UserError(f"--held-out: {where}; name the folder that holds the splits, and one of them with --split")
        raise UserError(f"--split: {where}")
    sources = (read_manifest(folder).source or folder.parent.name for folder in trained_on)
    about = args.about or ", ".join(dict.fromkeys(sources))
    quiet_libraries()
    import onediff
    from onediff.evaluation.confidence.measure import measured
    from onediff.training.export import saved_model_of

    folder = saved_model_of(args.model)
    captioner = onediff.load(folder)
    knowledge = measured(captioner, trained_on, HeldOut.open(held_out, args.pairs), args.images, about, args.batch_size)
    knowledge.write(folder)
    if args.json:
        print(json.dumps({"folder": str(folder), **knowledge.as_json()}))
    else:
        print("\n".join([*knowledge.lines(), f"saved in {folder}"]))
    return 0


def training_splits(model: Path, data: Path | None) -> list[Path]:
    """Folders of the splits that a model was trained on. Raises UserError if they are unknown."""
    from onediff.config.compose import load_run

    if data is not None:
        if not (data / "train").is_dir():
            raise UserError(f"--data {data}: has no split named train")
        return [data / "train"]
    folder = Address.of(model).folder
    if not (folder / "config.yaml").is_file():
        raise UserError("--data: name the data set that the model was trained on; an export does not record it")
    config = load_run(folder)
    mixed: dict[str, Any] = {name: None for phase in config.phases.values() for name in phase.mix}
    return [Path(config.data.sets[name].folder) for name in mixed]
