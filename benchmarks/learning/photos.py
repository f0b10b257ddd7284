"""Can a model trained here tell two photographs apart? A frozen DINOv2-S and a language model, on composed pairs.

The language model, a small one of random weights or SmolLM2-135M with adapters, first learns to name the objects of single
images and their places, then what differs in pairs.

  make photos                                           # all stages; after an interruption the same command continues
  make photos-smollm2                                   # the same with SmolLM2-135M
  python -m benchmarks.learning.photos --hours 1        # train for at most one hour, then evaluate the result
  python -m benchmarks.learning.photos --only sheet     # one stage

Photographs come from Debian's opencv-doc and from scikit-image, cut-outs from tuxpaint-stamps-default. Both are held out by
image: `pairs/test` shows known cut-outs on photographs that are not in the training data, and `new/test` also uses cut-outs
that are not in it, although others of their kind are. Pairs that nobody composed (frames of a street camera some seconds
apart, and pairs of photographs) are captioned on a sheet for people to look at.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from data_prep.compose.library import find_backgrounds, find_cutouts

DATA, CONFIG = Path("data/photos"), Path("configs/photos.yaml")
PHOTOGRAPHS = Path("/usr/share/doc/opencv-doc/examples/data")
STAMPS = Path("/usr/share/tuxpaint/stamps")
KINDS = ("animals/mammals", "food", "hobbies/music", "vehicles")
"""Folders of stamps that cut-outs are taken from."""
NOT_COMPOSED = ("vtest", "ela_", "leuven")
"""Photographs that are shown as they are; nothing is put on them."""
HELD_OUT = ("apple", "baboon", "board", "butterfly", "coffee", "fruits", "graf", "home", "messi5", "stuff", "tree")
"""Photographs that are kept for held-out pairs, by the beginning of their names."""
PAIRS, SINGLES, TEST = 24_000, 6000, 400
"""Pairs and single images for training, and held-out pairs."""
DEPTH = 8
"""Layers of DINOv2-S that are kept. A linear probe names cut-outs of one to two patches better from the eighth layer than
from the twelfth, the last, and layers that are not computed cost nothing."""
SHOWN = ("captions right", "changed captions right", "false alarms", "name right", "place right", "unread captions")
FRAMES = ((0, 40), (100, 150), (200, 240), (300, 360), (400, 430), (500, 560))
"""Pairs of frames of the street camera, which takes ten a second."""


def photographs() -> tuple[list[Path], list[Path]]:
    """Photographs and videos for training, and those held out."""
    found = [*find_backgrounds([PHOTOGRAPHS]).backgrounds, *find_backgrounds([]).backgrounds]
    files = sorted({Path(one.path) for one in found if not Path(one.path).name.startswith(NOT_COMPOSED)})
    kept = [file for file in files if file.name.startswith(HELD_OUT)]
    return [file for file in files if file not in kept], kept


def cutouts() -> tuple[list[Path], list[Path]]:
    """Cut-outs for training, and those held out: of each kind that has several images, the last.

    A kind is the last word of a name. An image and its mirror image count as one.
    """
    kinds: dict[str, dict[str, list[Path]]] = {}
    for one in find_cutouts([STAMPS / kind for kind in KINDS]).cutouts:
        path = Path(one.path)  # type: ignore[union-attr]
        images = kinds.setdefault(one.name.split()[-1].lower(), {})
        images.setdefault(path.stem.removesuffix("_mirror"), []).append(path)
    train: list[Path] = []
    kept: list[Path] = []
    for images in kinds.values():
        *first, last = [images[stem] for stem in sorted(images)]
        train += [path for paths in (first or [last]) for path in paths]
        kept += last if first else []
    return train, kept


def compose() -> None:
    """The data sets `singles`, `pairs` and `new`."""
    photos, kept_photos = photographs()
    things, kept_things = cutouts()
    print(f"photographs: {len(photos)} and {len(kept_photos)} held out; cut-outs: {len(things)} and {len(kept_things)}")
    for name, split, kind, number, backgrounds, of in (
        ("singles", "train", "--singles", SINGLES, photos, things),
        ("pairs", "train", "--pairs", PAIRS, photos, things),
        ("pairs", "test", "--pairs", TEST, kept_photos, things),
        ("new", "test", "--pairs", TEST, kept_photos, kept_things),
    ):
        words = ["--size", "128", "--split-sizes", f"{split}=1.0", kind, str(number)]
        words += ["--recipe", "configs/scenes/photos.yaml", "--backgrounds", *map(str, backgrounds)]
        onediff("data", "compose", "--out", str(DATA / name), *words, "--cutouts", *map(str, of))


def parts() -> None:
    """The first layers of DINOv2-S, and SmolLM2-135M, as Hugging Face folders."""
    from tests.support import real_models

    tower, language = DATA / "tower", DATA / "smollm2"
    if not tower.is_dir():
        from transformers import Dinov2Config, Dinov2Model

        whole = real_models.dinov2()
        fields = json.loads((whole / "config.json").read_text()) | {"num_hidden_layers": DEPTH}
        stages = ("stage_names", "out_features", "out_indices")  # they name all twelve layers
        config = Dinov2Config(**{key: value for key, value in fields.items() if key not in stages})
        aside = tower.with_name(".tmp-tower")
        Dinov2Model.from_pretrained(whole, config=config).save_pretrained(aside)
        aside.rename(tower)
    if not language.is_dir():
        aside = language.with_name(".tmp-smollm2")
        shutil.copytree(real_models.smollm2(), aside, dirs_exist_ok=True)
        aside.rename(language)


def train(config: Path, run: Path, hours: float, processes: int, overrides: list[str]) -> None:
    """Trains, or continues training; after `hours`, asks the run to stop with a checkpoint."""
    words = [str(run), "--resume"] if (run / "config.yaml").is_file() else [str(config), *overrides, "--run", str(run)]
    command = [sys.executable, "-m", "onediff", "train", *words, "--processes", str(processes)]
    running = subprocess.Popen(command)
    try:
        code = running.wait(timeout=3600 * hours)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGTERM)
        running.wait()
        print(f"stopped after {hours:g} hours; the same command continues")
        return
    if code:
        sys.exit(code)


def evaluate(run: Path) -> None:
    """Prints how much of the captions of held-out pairs is right, for known cut-outs and for new ones."""
    from onediff.evaluation.items import score

    for name, told in (("pairs", "known cut-outs"), ("new", "new cut-outs")):
        out = run / f"evaluation-{name}"
        onediff("evaluate", str(run), "--data", str(DATA / name), "--out", str(out))
        captions = {one["id"]: one["caption"] for one in _lines(out / "predictions.jsonl")}
        changes = {one["id"]: one["meta"] for one in _lines(out / "references.jsonl")}
        found = score(captions, changes, bootstrap=1000)
        kinds = {one["id"]: one["change_type"] for one in _lines(out / "references.jsonl")}
        right = sum(found.readings[pair].type == kinds[pair] for pair in found.ids)
        figures = {"type right": right / len(found.ids), **{key: found.values.get(key, 0.0) for key in SHOWN}}
        print(f"{told}, {len(found.ids)} pairs: " + ", ".join(f"{key} {100 * of:.1f} %" for key, of in figures.items()))
        (out / "figures.json").write_text(json.dumps({**figures, "intervals": found.intervals}, indent=1) + "\n")


def sheet(run: Path, file: Path) -> None:
    """Captions of pairs that nobody composed, as an image to look at."""
    import onediff as library
    from onediff.data.contact_sheet import cell, grid, save, wrapped
    from onediff.training.export import saved_model_of

    pairs = list(not_composed())
    captioner = library.load(saved_model_of(run))
    cells = []
    for (name, before, after), caption in zip(
        pairs, captioner.captions([(b, a) for _, b, a in pairs], max_new_tokens=32), strict=True
    ):
        print(f"{name}: {caption}")
        shown = [image.resize((256, 192)) for image in (before, after)]
        cells.append(cell(shown, wrapped(f"{name}: {caption}", 256, 3, "#333333"), 256, 3, 3))
    save(grid(cells, 2, 8), file)
    print(f"sheet: {file}")


def not_composed() -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """Name, before and after of real pairs."""
    import cv2

    video, frames = cv2.VideoCapture(str(PHOTOGRAPHS / "vtest.avi")), {}
    wanted = {number for pair in FRAMES for number in pair}
    for number in range(max(wanted) + 1):
        _, pixels = video.read()  # seeking depends on the codec's key frames; reading on is exact
        if number in wanted:
            frames[number] = Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    yield from ((f"street {(b - a) / 10:g} s apart", frames[a], frames[b]) for a, b in FRAMES)
    yield "the same frame", frames[0], frames[0]
    for name, first, second in (("ela", "ela_original", "ela_modified"), ("leuven", "leuvenA", "leuvenB")):
        yield name, *(Image.open(PHOTOGRAPHS / f"{one}.jpg").convert("RGB") for one in (first, second))


def onediff(*words: str) -> None:
    """Runs a command of this project; exits with its exit code if it fails."""
    code = subprocess.run([sys.executable, "-m", "onediff", *words], check=False).returncode
    if code:
        sys.exit(code)


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def main() -> None:
    """Runs the stages in turn; existing results are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the configuration's")
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help=f"(default: {CONFIG})")
    parser.add_argument("--hours", type=float, default=2.0, metavar="N", help="of training (default: 2)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that train (default: 1)")
    parser.add_argument("--only", choices=("compose", "features", "train", "evaluate", "sheet"))
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="(default: not_composed.png in the run)")
    args = parser.parse_args()
    for folder in (PHOTOGRAPHS, STAMPS):
        if not folder.is_dir():
            sys.exit(f"{folder}: no such folder; apt-get install opencv-doc tuxpaint-stamps-default")
    run = Path("runs") / args.config.stem
    if args.only in (None, "compose"):
        compose()
    if args.only in (None, "features"):
        parts()
        onediff("data", "features", str(args.config), *args.overrides)
    if args.only in (None, "train"):
        train(args.config, run, args.hours, args.processes, args.overrides)
    if args.only in (None, "evaluate"):
        evaluate(run)
    if args.only in (None, "sheet"):
        sheet(run, args.sheet or run / "not_composed.png")


if __name__ == "__main__":
    main()
