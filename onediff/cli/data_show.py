"""Show the first samples of a phase exactly as the model will see them.

  onediff data show configs/demo.yaml --phase two --out sheet.png
  onediff data show runs/mine data.max_tokens=1024 --samples 6

The PNG has the pictures after cutting and scaling, the words around them, the answer in green, and a bar of all tokens in
proportion: grey words, blue before, orange after, violet delta, green answer. The samples are those of the phase's first
steps, in the order of training. Below, the lengths in tokens of the first --lengths samples, and the padding they cause.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from onediff.cli.quiet import quiet_libraries
from onediff.config.compose import load_run
from onediff.config.section import nearest
from onediff.errors import UserError

if TYPE_CHECKING:
    from onediff.data.rows import Row
    from onediff.data.stream import Stream


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, name of a shipped one (configs/demo.yaml), or the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the file")
    parser.add_argument("--phase", metavar="NAME", help="whose mix to show (default: the last)")
    parser.add_argument("--samples", type=int, default=12, metavar="N", help="samples on the sheet (default: 12)")
    parser.add_argument(
        "--lengths", type=int, default=256, metavar="N", help="samples that are measured (default: 256)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("sheet.png"), metavar="FILE", help="the PNG (default: sheet.png)"
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="run whose tokenizer to take (default: runs/<name>)")


def run(args: argparse.Namespace) -> None:
    config = load_run(args.config, args.overrides)
    name = args.phase or list(config.phases)[-1]
    if name not in config.phases:
        raise UserError(f"--phase: no phase {name!r}{nearest(name, config.phases)}")
    if min(args.samples, args.lengths) < 1:
        raise UserError("--samples and --lengths must be 1 or more")
    quiet_libraries()
    from onediff.data.sheet import layout, save_sheet
    from onediff.model.build import build_row_maker
    from onediff.model.tokenizer import learn_tokenizer
    from onediff.training.data import phase_stream, training_texts
    from onediff.training.folder import RunFolder

    phase = config.phases[name]
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer_folder = RunFolder(args.run or Path("runs") / config.name).tokenizer
        wanted = config.model.language.tokenizer
        if wanted is not None and not isinstance(wanted, str) and not tokenizer_folder.is_dir():
            tokenizer_folder = Path(scratch) / "tokenizer"  # as training will learn it
            learn_tokenizer(training_texts(config), wanted.vocabulary, tokenizer_folder)
        maker, tokenizer = build_row_maker(config.model, config.data, tokenizer_folder)
    stream = phase_stream(config, phase, maker)
    rows = in_order(stream, phase.global_batch)
    shown = list(itertools.islice(rows, args.samples))
    save_sheet(shown, tokenizer, args.out)
    for row in shown:
        print(f"{stream.sources[row.source].name}  {', '.join(row.ids)}: {layout(row, tokenizer)}")
        for fault in row.skipped:
            print(f"  passed over before it ({fault.kind}): {fault.shard} {fault.what}")
    measured = shown + list(itertools.islice(rows, max(0, args.lengths - len(shown))))
    print("\n" + lengths([len(row.token_ids) for row in measured], phase.micro_batch))
    print(f"{args.out}: {len(shown)} samples of phase {name}")


def in_order(stream: Stream, lanes: int) -> Iterator[Row]:
    """Samples in the order of training: one of every lane, step by step."""
    draws = [0] * lanes
    while True:
        for lane in range(lanes):
            row = stream.row(lane, draws[lane])
            draws[lane] = row.next_draw
            yield row


def lengths(tokens: list[int], micro_batch: int) -> str:
    """Their spread, and the share of padding in micro-batches that are as long as their longest row."""
    in_turn = sorted(tokens)
    groups = [tokens[start : start + micro_batch] for start in range(0, len(tokens), micro_batch)]
    places = sum(len(group) * max(group) for group in groups)
    return (
        f"tokens of {len(tokens)} samples: min {in_turn[0]}, median {median(in_turn):g}, "
        f"p95 {in_turn[int(0.95 * (len(in_turn) - 1))]}, max {in_turn[-1]}; padding in micro-batches of {micro_batch}: "
        f"{1 - sum(tokens) / places:.1%}"
    )
