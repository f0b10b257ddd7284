"""Describe how images differ.

  onediff caption before.jpg after.jpg --model runs/demo
  onediff caption photos/2023 photos/2024 --model my-model        images with the same name in two folders
  onediff caption pairs.csv --model my-model --report page.html   columns before, after, and optionally id, caption
  onediff caption street.mp4 --every 5 --against first --model my-model
  onediff caption before.jpg after.jpg --model my-model --attention where.png

Images may have any format and size. One pair prints its sentence; several print one line each, with name and sentence.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onediff.amounts import at_least, positive
from onediff.errors import UserError
from onediff.runs.address import Address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from onediff.evaluation.captioner import Captioner
    from onediff.evaluation.confidence import Judged
    from onediff.evaluation.pairs import Pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="two images, two folders, a table, a video")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="a run, RUN@best or RUN@STEP of it, or an export"
    )
    parser.add_argument("--instruction", metavar="TEXT", help="instruction to use instead of the one used in training")
    parser.add_argument(
        "--max-new-tokens", type=at_least(1), default=64, metavar="N", help="longest caption (default: 64)"
    )
    parser.add_argument(
        "--beams", type=at_least(1), default=1, metavar="N", help="beam search of this width (default: greedy)"
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), default=16, metavar="N", help="pairs captioned at once (default: 16)"
    )
    parser.add_argument("--every", type=positive, default=1.0, metavar="S", help="seconds between frames of a video")
    parser.add_argument(
        "--against",
        choices=("first", "previous"),
        default="previous",
        help="what a frame is compared with (default: previous)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per pair instead of the sentence")
    parser.add_argument(
        "--report", type=Path, metavar="HTML", help="write one page with images, captions and attention maps"
    )
    parser.add_argument(
        "--attention",
        type=Path,
        metavar="PATH",
        help="write where the model looked, over both images: a .png file for one pair, a folder for several",
    )


def run(args: argparse.Namespace) -> int:
    from onediff.cli.quiet import quiet_libraries
    from onediff.evaluation.pairs import counted, pairs_of, unmatched
    from onediff.outputs import check_folder, check_output
    from onediff.progress import progress

    pairs, total = counted(pairs_of(args.paths, args.every, args.against))
    for folder, names in unmatched(args.paths).items():
        shown_names = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        print(f"{folder}: {len(names)} without a counterpart, left out: {shown_names}", file=sys.stderr)
    Address.of(args.model).require()
    one_file = args.attention is not None and args.attention.suffix.lower() == ".png"
    if one_file and (len(args.paths) == 1 or args.paths[0].is_dir()):
        raise UserError(f"--attention {args.attention}: name a folder, because there may be several pairs")
    if one_file:
        check_output(args.attention, "--attention")
    else:
        check_folder(args.attention)
    check_output(args.report, "--report")
    quiet_libraries()
    import onediff
    from onediff.training.export import saved_model_of

    captioner = onediff.load(saved_model_of(args.model))
    single = len(args.paths) == 2 and args.paths[0].is_file()
    faults: list[str] = []
    shown: list[dict[str, Any]] = []
    taken: set[str] = set()
    done = 0
    # In a terminal, the captions themselves show the progress.
    bar = progress(total, "captions", "pairs", shown=not sys.stdout.isatty())
    while chunk := list(islice(pairs, args.batch_size)):
        bar.update(len(chunk))
        for pair, said, heat in captioned(captioner, chunk, args, faults):
            done += 1
            tell(pair, said, single, args.json)
            if args.attention is not None:
                name = args.attention if one_file else args.attention / f"{unused(safe_name(pair.id), taken)}.png"
                write_attention(captioner, pair, heat, name)
            if args.report is not None:
                shown.append(card(captioner, pair, said, heat))
    bar.close()
    if args.report is not None:
        from onediff.evaluation.report import write_gallery

        write_gallery(args.report, shown, {"model": str(args.model), "pairs": str(done)})
        print(f"report: {args.report}", file=sys.stderr)
    if faults and single:
        raise UserError(faults[0])
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    if faults:
        raise UserError(f"{len(faults)} of {done + len(faults)} pairs are left out, for the reasons above")
    return 0


def captioned(
    captioner: Captioner, pairs: list[Pair], args: argparse.Namespace, faults: list[str]
) -> Iterator[tuple[Pair, Judged, Any]]:
    """Pair, caption and attention map (packed into bytes) of each readable pair; `faults` gets a line for each other one."""
    from onediff.evaluation.attention_map import packed, unpacked

    rows, read = [], []
    for pair in pairs:
        try:
            rows.append(captioner.row(pair.before, pair.after, args.instruction))
            read.append(pair)
        except UserError as fault:
            faults.append(str(fault))
    if not rows:
        return
    said = captioner.judged_answers(rows, max_new_tokens=args.max_new_tokens, num_beams=args.beams)
    wanted = args.attention is not None or args.report is not None
    maps = [unpacked(packed(heat)) for heat in captioner.attention_maps(rows)] if wanted else [None] * len(rows)
    yield from zip(read, said, maps, strict=True)


def tell(pair: Pair, said: Judged, single: bool, as_json: bool) -> None:
    """Prints one caption; a warning and a caption that was not believed go to standard error, so that captions can be
    piped."""
    if as_json:
        files = {name: str(p) for name, p in (("before", pair.before), ("after", pair.after)) if isinstance(p, Path)}
        print(json.dumps({"id": pair.id, **files, **said.as_json()}, ensure_ascii=False), flush=True)
        return
    print(said.caption if single else f"{pair.id}: {' '.join(said.caption.split())}", flush=True)
    for kind, text in (("warning", said.warning), ("not believed", said.instead_of)):
        if text is not None:
            print(f"{kind}: {'' if single else f'{pair.id}: '}{text}", file=sys.stderr, flush=True)


def opened(captioner: Captioner, image: Path | Image.Image) -> Image.Image:
    """The image, upright and in RGB."""
    from onediff.data.images import open_upright

    if not isinstance(image, Path):
        return image
    return open_upright(image.read_bytes(), captioner.processor.config.max_pixels)


def write_attention(captioner: Captioner, pair: Pair, heat: Any, path: Path) -> None:
    """Writes both images with the attention map over them as one PNG. Raises UserError if it cannot be written."""
    from onediff.evaluation.attention_map import side_by_side
    from onediff.outputs import writing

    before, after = opened(captioner, pair.before), opened(captioner, pair.after)
    with writing(path):
        side_by_side(before, after, heat, captioner.processor.image).save(path, "PNG")


def card(captioner: Captioner, pair: Pair, said: Judged, heat: Any) -> dict[str, Any]:
    """One pair of the report."""
    from onediff.evaluation.attention_map import laid_over, png
    from onediff.evaluation.report.images import PairImages

    images = [opened(captioner, image) for image in (pair.before, pair.after)]
    for image in images:
        image.thumbnail((512, 512))
    heated = [png(image) for image in laid_over(images, heat, captioner.processor.image)]
    return {
        "id": pair.id,
        "refs": list(pair.references),
        "pred": said.caption,
        "fault": said.warning if said.instead_of is None else f"not believed: {said.instead_of}",
        "type": "" if said.confidence is None else f"confidence {said.confidence:.0%}",
        "images": PairImages(*(png(p) for p in images), *heated),
    }


def safe_name(pair: str) -> str:
    """A pair's id, made safe as a file name."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in pair)
    return plain.encode()[:150].decode(errors="ignore")  # file systems count bytes


def unused(name: str, taken: set[str]) -> str:
    """`name`, followed by a number if it is in `taken`; adds the result to `taken`."""
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    free = next(one for one in names if one not in taken)
    taken.add(free)
    return free
