"""Run everything once, small, on this machine: render images, train a model, score it, and write captions with it.

Renders scenes into data/scenes, teaches a small vision tower what is in them, trains configs/demo.yaml with two processes
into runs/demo, scores it on held-out pairs beside baselines that ignore the images, captions one pair, and draws a sheet of
the worst and the best captions. It takes seven to ten minutes on two idle cores, without a GPU or downloads. Each step is an
ordinary command, printed before it runs. After an interruption the same command continues; a finished run is kept, and the
next demo goes to runs/demo-2. With "--config configs/demo_long.yaml", training takes about an hour.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from onediff.amounts import at_least
from onediff.errors import EXIT_STOPPED, UserError

if TYPE_CHECKING:
    from onediff.config.run import RunConfig

PAIRS, SINGLES = 36_000, 8_000
SPLITS = "train=0.95,val=0.02,test=0.03"
QUALITY = 95
"""JPEG quality of the scenes; JPEG decodes three times as fast as PNG."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the configuration's")
    parser.add_argument(
        "--config", default="configs/demo.yaml", metavar="FILE", help="configuration to train (default: %(default)s)"
    )
    parser.add_argument(
        "--pairs", type=at_least(1), default=PAIRS, metavar="N", help=f"pairs to render (default: {PAIRS})"
    )
    parser.add_argument(
        "--singles", type=at_least(1), default=SINGLES, metavar="N", help=f"single scenes (default: {SINGLES})"
    )
    parser.add_argument("--processes", type=at_least(1), default=2, metavar="N", help="training processes (default: 2)")


def run(args: argparse.Namespace) -> int:
    from onediff.config.compose import configs_folder, load_run
    from onediff.config.tracking import TrackingConfig
    from onediff.tracking.place import how_to_look, program, tracking_uri
    from onediff.tracking.scrub import scrubbed

    started = time.monotonic()
    config = load_run(args.config, args.overrides)
    data = Path(config.data.sets["pairs"].path).parent
    folder = Path("runs") / config.name
    goes_on = is_unfinished(folder, config)
    if goes_on:
        print(f"{folder} is unfinished and continues; remove the folder to start over")
    else:
        folder = free_folder(folder)
    size = config.model.vision.image.size
    render = ["--scenes", configs_folder() / "scenes" / "demo.yaml", "--size", size, "--jpeg", QUALITY]
    render += ["--pairs", args.pairs, "--singles", args.singles, "--split-sizes", SPLITS]
    step("data", "render", "--out", data, *render, *([] if goes_on else ["--overwrite"]))
    if config.model.vision.name is not None:
        step("demo-tower", args.config, *args.overrides)
    train = [args.config, *args.overrides, "--processes", args.processes, "--run", folder]
    step("train", *train, *(["--resume"] if goes_on else []))
    step("calibrate", folder, "--about", "rendered scenes")
    step("evaluate", folder, "--baselines", "--processes", args.processes)
    before, after, reference = held_out_pair(data / "pairs" / "test", folder / "example")
    step("caption", before, after, "--model", folder)
    print(f"reference:  {reference}")
    show_outcome(folder, data / "pairs" / "test")
    print(f"\nTry it:     {program('onediff')} demo-page {folder}   (a page to drop two images in)")
    print(f"The run:    {folder} (config.yaml repeats it; evaluation/ holds captions and scores)")
    print(f"MLflow:     {how_to_look(scrubbed(tracking_uri(folder, TrackingConfig())))}")
    print(f"Took {(time.monotonic() - started) / 60:.1f} minutes.")
    return 0


def is_unfinished(folder: Path, config: RunConfig) -> bool:
    """Whether a demo with these settings was started in `folder` and did not reach its last step, the example."""
    from onediff.config.compose import load_run

    begun = (folder / "config.yaml").is_file() and not (folder / "example").exists()
    return begun and load_run(folder) == config


def free_folder(first: Path) -> Path:
    """`first`, or the first of `first-2`, `first-3`, … that does not exist."""
    number = 1
    folder = first
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


def step(*words: object) -> None:
    """Prints and runs one command of this program. Raises UserError with its exit code if it fails.

    Exits with code 75 if the command did, because it was asked to stop.
    """
    from onediff.tracking.place import program

    shown = [str(word) for word in words]
    print(f"\n$ {program('onediff')} {' '.join(shown)}", flush=True)
    with subprocess.Popen([sys.executable, "-m", "onediff", *shown]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            code = process.wait()  # the terminal's Ctrl-C reached it too: let it write its checkpoint
            if code != EXIT_STOPPED:
                raise
    if code == EXIT_STOPPED:
        print("demo: stopped; the same command continues from here", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    if code:
        raise UserError(f"demo: 'onediff {shown[0]}' ended with exit code {code}; its messages are above")


def show_outcome(run: Path, split: Path) -> None:
    """Prints how well the model does on held-out pairs."""
    from onediff.demo.outcome import outcome

    print()
    for line in outcome(run, split):
        print(line)


def held_out_pair(split: Path, folder: Path) -> tuple[Path, Path, str]:
    """Writes the first changed pair of a split as two files in `folder`; returns one of its reference captions."""
    from onediff.data.heldout import HeldOut
    from onediff.data.sample import image_suffix

    heldout = HeldOut.open(split)
    pair = next(pair for pair, kind in heldout.change_types.items() if kind != "none")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for role in ("before", "after"):
        data = heldout.sample(pair).images[role]
        files.append(folder / f"{role}.{image_suffix(data)}")
        files[-1].write_bytes(data)
    return files[0], files[1], heldout.references[pair][0]
