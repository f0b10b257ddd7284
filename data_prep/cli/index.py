"""Write indexes and a manifest for a folder of tars, such as shards written by another tool.

Missing or stale indexes are rebuilt; a manifest is written if there is none.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from data_prep.report import counted
from data_prep.shards import data_sets, over_shards
from data_prep.workers import add_workers
from onediff.data.index import build_index, index_path, save_index
from onediff.data.manifest import FILE, build_manifest, write_manifest
from onediff.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of tars, or a folder of such splits")
    parser.add_argument("--name", help="name in a new manifest (default: that of the parent folder)")
    parser.add_argument("--source", default="", help="source in a new manifest")
    parser.add_argument("--licence", default="", help="licence in a new manifest")
    add_workers(parser)


def run(args: argparse.Namespace) -> None:
    for manifest in data_sets(args.folder):
        paths = [manifest.path(shard) for shard in manifest.shards]
        for path, line in zip(paths, over_shards(index_tar, paths, args.processes, manifest.split), strict=True):
            print(f"{path}: {line}")
        if not (manifest.folder / FILE).exists():
            fields = {"source": args.source, "licence": args.licence, "name": args.name or manifest.name}
            new = dataclasses.replace(build_manifest(manifest.folder, checksums=True), **fields)
            if not new.samples:
                raise UserError(f"{manifest.folder}: the tars hold no samples")
            print(f"{write_manifest(new)}: {counted(new.samples, 'sample')} in {counted(len(new.shards), 'shard')}")


def index_tar(path: Path) -> str:
    """Builds and stores one index; returns a line for the user."""
    index = build_index(path)
    save_index(index, index_path(path))
    return "; ".join([counted(len(index), "sample"), *index.damage])
