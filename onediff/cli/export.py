"""Write a trained model to a folder that needs neither the run nor this project.

  onediff export runs/demo my-model
  onediff export runs/demo@best my-model
  onediff export runs/demo my-model --dtype bf16
  onediff export runs/demo my-model --register onediff --alias reviewed
  onediff export runs/demo my-model --push someone/my-model

Hugging Face transformers loads it: AutoModel.from_pretrained(DIR, trust_remote_code=True), and the same for AutoProcessor.
Its folders `vision/` and `language/` are complete models themselves.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from onediff.amounts import positive
from onediff.atomic import put_back
from onediff.config.model import SAVED_MODEL_FILE
from onediff.errors import UserError
from onediff.hub.share import REPOSITORY, push
from onediff.runs.address import Address
from onediff.runs.folder import require_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or RUN@best, RUN@STEP, RUN@PHASE:STEP")
    parser.add_argument("target", type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing export in DIR")
    parser.add_argument(
        "--dtype",
        choices=("bf16", "fp16", "fp32", "as-trained"),
        default="as-came",
        help="type of the weights; as-trained means the type that the run computed in. Default: the type of the "
        "pretrained language model, or as-trained if the run trained its own",
    )
    parser.add_argument(
        "--shard-gb", type=positive, default=5.0, metavar="N", help="size of the largest weight file, in 10^9 bytes"
    )
    parser.add_argument("--register", metavar="NAME", help="register it as a version of this model in MLflow")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face Hub, using HF_TOKEN")
    parser.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME",
        help="alias of the version that --register makes; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    from onediff.cli.quiet import quiet_libraries

    if args.alias and not args.register:
        raise UserError("--alias: only a registered model has aliases; add --register NAME")
    if "latest" in args.alias:
        raise UserError(
            "--alias latest: MLflow reserves this name for the newest version of every model; choose another"
        )
    if args.register is not None and not re.fullmatch(r"[^/:.][^/:]*", args.register):
        raise UserError(
            f"--register {args.register!r}: a model's name in MLflow must not contain '/' or ':', or begin with a dot"
        )
    if wrong := next((alias for alias in args.alias if not re.fullmatch(r"(?![vV]\d+$)[\w-]+", alias)), None):
        raise UserError(
            f"--alias {wrong!r}: MLflow accepts letters, digits, '_' and '-', and no version numbers such as v1"
        )
    if args.push and not REPOSITORY.fullmatch(args.push):
        raise UserError(f"--push {args.push!r}: name a repository as OWNER/NAME")
    put_back(args.target)
    if (args.target / SAVED_MODEL_FILE).is_file() and not args.overwrite:
        raise UserError(f"{args.target}: already holds an export; replace it with --overwrite, or name another folder")
    folder = require_run(Address.of(args.run).folder).path
    quiet_libraries()
    from onediff.training.export import export_run

    trained = export_run(args.run, args.target, args.dtype, int(args.shard_gb * 1e9))
    if args.register:
        from onediff.config.compose import load_run
        from onediff.tracking.tracker import Tracker

        tracker = Tracker.attach(folder, load_run(folder).tracking)
        tracker.model(args.target, args.register, args.alias)
        tracker.finish(None)
        if tracker.sender is None:
            print(f"tracking.live is off: 'onediff track sync {folder}' registers {args.register}")
        if tracker.unsent:
            raise UserError(f"{args.target}: written, but {args.register} is not registered yet; see above")
    print(f"{args.target}: {trained['run']}, phase {trained['phase']}, step {trained['step']}, {trained['dtype']}")
    if args.push:
        print(f"pushed to {push(args.target, args.push)}")
    return 0
