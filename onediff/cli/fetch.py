"""Download the weights, tokenizers and processors that a configuration names, for nodes without internet access.

  onediff fetch configs/onediff_7b.yaml
  onediff fetch configs/onediff_7b.yaml --to models
  onediff fetch configs/onediff_7b.yaml model.language.name=lmsys/vicuna-13b-v1.5

They go into the Hugging Face cache (HF_HOME), where training finds them, or with --to into plain folders; the command then
prints the overrides that read them. For each model it fetches safetensors if there are any, else PyTorch's own files. It
compares sizes and digests with the hub's. After an interruption the same command continues; complete files are kept.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, name of a shipped one (configs/demo.yaml), or the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the file")
    parser.add_argument("--to", type=Path, metavar="DIR", help="write plain folders here instead of the cache")


def run(args: argparse.Namespace) -> int:
    from onediff.config.compose import load_run
    from onediff.errors import UserError
    from onediff.hub.files import lacking
    from onediff.hub.named import Named, cache_folder, named_in

    config = load_run(args.config, args.overrides)
    repositories: dict[tuple[str, str | None], list[Named]] = {}
    faults, words = [], []
    for one in named_in(config.model):
        if not one.is_path:
            repositories.setdefault((one.name, one.revision), []).append(one)
        elif absent := lacking(one, one.folder()):
            faults.append(
                f"{one.where}: {one.name}: {', '.join(absent)} missing; this is a folder, not a model on the hub"
            )
    for repository in repositories.values():
        from onediff.hub.fetch import fetch  # huggingface_hub takes a second to import

        try:
            folder = fetch(repository, args.to)
        except UserError as error:
            faults.append(str(error))
        else:
            words += [f"{one.where}={folder}" for one in repository]
    for fault in faults:
        print(f"onediff: error: {' '.join(fault.split())}", file=sys.stderr)
    if faults:
        return 2
    if not repositories:
        print(f"{args.config} names no model on the hub")
    elif args.to is None:
        print(f"everything is in {cache_folder()}")
    else:
        print(f"everything is in {args.to}; read it with:\n  {shlex.join(words)}")
    return 0
