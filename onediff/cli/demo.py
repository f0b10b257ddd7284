"""The whole job at a small size, on this machine: from rendered pictures to a trained, scored, captioning model.

Renders scenes into data/scenes, trains configs/demo.yaml with two processes into runs/demo, scores held-out pairs beside
systems that do not look, and captions one pair. Takes about a quarter of an hour on two cores; needs no GPU and no
downloads. Each step is an ordinary command, printed before it runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from onediff.errors import UserError

DATA = Path("data/scenes")
PAIRS, SINGLES = 16_000, 8_000
SPLITS = "train=0.95,val=0.02,test=0.03"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override configs/demo.yaml")
    parser.add_argument("--pairs", type=int, default=PAIRS, metavar="N", help=f"pairs to render (default: {PAIRS})")
    parser.add_argument("--singles", type=int, default=SINGLES, metavar="N", help=f"single scenes (default: {SINGLES})")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="training processes (default: 2)")


def run(args: argparse.Namespace) -> int:
    from onediff.config.compose import configs_folder
    from onediff.tracking.config import TrackingConfig
    from onediff.tracking.place import how_to_look, tracking_uri
    from onediff.tracking.scrub import scrubbed

    started = time.monotonic()
    folder = free_folder(Path("runs/demo"))
    scenes = configs_folder() / "scenes" / "demo.yaml"
    sizes = ["--pairs", str(args.pairs), "--singles", str(args.singles), "--split-sizes", SPLITS]
    step("data", "render", "--out", DATA, "--scenes", scenes, *sizes, "--overwrite")
    step("train", "configs/demo.yaml", *args.overrides, "--processes", args.processes, "--run", folder)
    step("evaluate", folder, "--floors")
    before, after, reference = held_out_pair(folder / "example")
    step("caption", before, after, "--model", folder)
    print(f"reference:  {reference}")
    print(f"\nThe run:    {folder} (config.yaml repeats it; evaluation/ holds captions and scores)")
    print(f"MLflow:     {how_to_look(scrubbed(tracking_uri(folder, TrackingConfig())))}")
    print(f"Took {(time.monotonic() - started) / 60:.1f} minutes.")
    return 0


def free_folder(first: Path) -> Path:
    """`first`, or the first of `first-2`, `first-3`, … that no run has taken."""
    number = 1
    folder = first
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


def step(*words: object) -> None:
    """Runs one command of this program, shown first. Raises UserError when it fails, with its exit code in the line."""
    shown = [str(word) for word in words]
    print("\n$ onediff " + " ".join(shown), flush=True)
    with subprocess.Popen([sys.executable, "-m", "onediff", *shown]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal's Ctrl-C reached it too: let it write its checkpoint
            raise
    if code:
        raise UserError(f"demo: 'onediff {shown[0]}' ended with exit code {code}; its messages stand above")


def held_out_pair(folder: Path) -> tuple[Path, Path, str]:
    """The first changed held-out pair as two files, and a sentence that somebody who knows would say of it."""
    from onediff.data.heldout import HeldOut
    from onediff.data.sample import picture_suffix

    heldout = HeldOut.open(DATA / "pairs" / "test")
    pair = next(pair for pair, kind in heldout.change_types.items() if kind != "none")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for role in ("before", "after"):
        data = heldout.sample(pair).pictures[role]
        files.append(folder / f"{role}.{picture_suffix(data)}")
        files[-1].write_bytes(data)
    return files[0], files[1], heldout.references[pair][0]
