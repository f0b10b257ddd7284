"""List the checkpoints of a run: phase, step, size, and how many processes wrote them."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onediff.training.checkpoint.manifest import CheckpointManifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `onediff checkpoint list`."""
    parser.add_argument("path", type=Path, help="a run, a folder of checkpoints, or one checkpoint")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(args: argparse.Namespace) -> None:
    """Prints one line per checkpoint. Raises UserError if there is none."""
    from onediff.training.checkpoint.folder import best_checkpoint, checkpoints_below, latest_checkpoint
    from onediff.training.checkpoint.manifest import read_manifest

    rows: list[dict[str, Any]] = []
    for path in checkpoints_below(args.path):
        manifest = read_manifest(path)
        rows.append(
            {
                "phase": path.resolve().parent.name.removeprefix("phase-"),
                "step": manifest.step,
                "latest": latest_checkpoint(path.parent) == path,
                "best": best_of(manifest) if best_checkpoint(path.parent) == path else None,
                "bytes": manifest.bytes,
                "parameters": sum(parameter.numel for parameter in manifest.parameters.values()),
                "tensor": manifest.tensor,
                "data": manifest.world // manifest.tensor,
                "zero_stage": manifest.zero_stage,
                "written": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((path / "manifest.json").stat().st_mtime)),
                "path": str(path),
            }
        )
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'phase':<14}{'step':>9}  {'size':>10}  {'parameters':>14}  {'T × D':>7}  {'ZeRO':>4}  written")
    for row in rows:
        marks = ["latest"] if row["latest"] else []
        marks += [f"best: {row['best']}"] if row["best"] else []
        told = f"  ({', '.join(marks)})" if marks else ""
        topology = f"{row['tensor']} × {row['data']}"
        print(
            f"{row['phase']:<14}{row['step']:>9}  {row['bytes'] / 1e6:>7.1f} MB  {row['parameters']:>14,}  {topology:>7}"
            f"  {row['zero_stage']:>4}  {row['written']}{told}"
        )


def best_of(manifest: CheckpointManifest) -> str:
    """The text for the metric that makes a checkpoint the best of its phase."""
    best = manifest.extra.get("measures", {}).get("best") or {}
    if best.get("step") != manifest.step:
        return "measured after it was written"
    return f"{best['metric']} {best['value']:.4f}"
