"""Show the first samples of a phase exactly as the model sees them.

  onediff data show configs/demo.yaml --phase two --out sheet.png
  onediff data show runs/mine data.max_tokens=1024 --samples 6
  onediff data show runs/mine --phase two --sample pairs/part-003.tar:000017

The PNG shows the images after cropping and scaling, the text around them, the answer in green, and a bar of all tokens to
scale: grey text, blue before, orange after, violet delta, green answer. The samples are those of the phase's first steps,
in training order. If the phase packs samples, the PNG shows them row by row, with a bar of the whole row above its samples
and padding in white. The printed text gives the lengths in tokens of the first --lengths samples, the padding they cause,
and the padding in packed rows.

--sample shows named samples instead: DATA-SET/SHARD.tar:KEY, as a run names samples whose gradients are not finite. @2
after the key means the third pass over the data set; a coupled row is two names joined by +.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onediff.amounts import at_least
from onediff.cli.quiet import quiet_libraries
from onediff.config.compose import load_run
from onediff.config.section import nearest
from onediff.errors import UserError
from onediff.outputs import check_output

if TYPE_CHECKING:
    from onediff.data.rows import TokenRow
    from onediff.data.stream import Stream


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, name of a shipped one (configs/demo.yaml), or the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the file")
    parser.add_argument("--phase", metavar="NAME", help="phase to show (default: the last)")
    parser.add_argument(
        "--samples", type=at_least(1), default=12, metavar="N", help="samples on the sheet (default: 12)"
    )
    parser.add_argument(
        "--sample",
        nargs="+",
        default=[],
        metavar="NAME",
        help="show only these samples, named by data set, shard and key",
    )
    parser.add_argument(
        "--lengths", type=at_least(1), default=256, metavar="N", help="number of samples to measure (default: 256)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("sheet.png"), metavar="FILE", help="the PNG (default: sheet.png)"
    )
    parser.add_argument(
        "--run",
        type=Path,
        metavar="DIR",
        help="run whose tokenizer to use (default: CONFIG, if it is a run, or runs/<name>)",
    )


def run(args: argparse.Namespace) -> None:
    config = load_run(args.config, args.overrides)
    name = args.phase or list(config.phases)[-1]
    if name not in config.phases:
        raise UserError(f"--phase: no phase {name!r}{nearest(name, config.phases)}")
    check_output(args.out, "--out")
    quiet_libraries()
    from onediff.data.sheet import save_sheet
    from onediff.training.data import phase_lengths, phase_stream, processor_before_training

    phase = config.phases[name]
    processor, tokenizer = processor_before_training(config, args.config, args.run)
    stream = phase_stream(config.data.from_images(), phase, processor)
    if args.sample:
        show_named(args.sample, stream, tokenizer, args.out)
        return
    shown: list[list[TokenRow]] = []
    for samples in in_order(stream, phase.global_batch):
        shown.append(samples)
        if sum(map(len, shown)) >= args.samples:
            break
    save_sheet(shown, tokenizer, args.out, phase.pack)
    for number, samples in enumerate(shown, 1):
        print("\n".join(described(number, samples, stream, tokenizer)))
    lengths = phase_lengths(config.data, phase, stream, phase.global_batch, args.lengths)
    print("", *lengths.lines(), f"{args.out}: {sum(map(len, shown))} samples of phase {name}", sep="\n")


def show_named(names: list[str], stream: Stream, tokenizer: Any, out: Path) -> None:
    """Draws the rows with these names, and prints a line and all the text of each. Raises UserError."""
    from onediff.data.named import row_named
    from onediff.data.sheet import layout, save_sheet, spans

    rows = [row_named(stream, name) for name in names]
    save_sheet([[row] for row in rows], tokenizer, out)
    for name, row in zip(names, rows, strict=True):
        print(f"{name}  {', '.join(row.ids)}: {layout(row, tokenizer)}")
        print(*(f"  {span.kind}: {span.text.strip()}" for span in spans(row, tokenizer) if span.text.strip()), sep="\n")
    print(f"{out}: {len(rows)} samples")


def described(number: int, samples: list[TokenRow], stream: Stream, tokenizer: Any) -> Iterator[str]:
    """One line per sample of a row: its source, its ids, the kinds of its tokens and, in packed rows, its position."""
    from onediff.data.sheet import layout, packed_layout

    places = [""] * len(samples)
    if stream.pack:
        tokens = sum(len(sample.token_ids) for sample in samples)
        yield f"row {number}: {len(samples)} samples, {tokens:,} of {stream.pack:,} tokens"
        places = [f"  {place}: " for place in packed_layout(samples, stream.pack)]
    for place, sample in zip(places, samples, strict=False):
        yield f"{place}{stream.sources[sample.source].name}  {', '.join(sample.ids)}: {layout(sample, tokenizer)}"
        for fault in sample.skipped:
            yield f"  skipped before it ({fault.kind}): {fault.shard} {fault.what}"
    if len(places) > len(samples):
        yield f"{places[-1]}padding"


def in_order(stream: Stream, lanes: int) -> Iterator[list[TokenRow]]:
    """The samples of each row in training order: one row of every lane per step."""
    from onediff.data.ahead import rows
    from onediff.data.cursor import Cursor

    for _, samples, _ in rows(stream, Cursor.start(range(lanes)).lanes, workers=0, prefetch=1):
        yield samples
