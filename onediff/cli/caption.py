"""Say in words how two pictures differ.

onediff caption before.jpg after.jpg --model runs/demo
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="BEFORE", help="picture file")
    parser.add_argument("after", type=Path, metavar="AFTER", help="picture file")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="a run, or a folder made by `onediff export`"
    )
    parser.add_argument("--instruction", metavar="TEXT", help="ask something else than what the model was trained on")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="longest caption (default: 64)")
    parser.add_argument("--beams", type=int, default=1, metavar="N", help="beam search of this width (default: greedy)")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of the sentence")


def run(args: argparse.Namespace) -> int:
    from onediff.cli.quiet import quiet_libraries
    from onediff.errors import UserError

    for picture in (args.before, args.after):
        if not picture.is_file():
            raise UserError(f"{picture}: no such picture")
    quiet_libraries()
    import onediff
    from onediff.training.export import saved_model_of

    captioner = onediff.load(saved_model_of(args.model))
    caption = captioner.caption(
        args.before,
        args.after,
        instruction=args.instruction,
        max_new_tokens=args.max_new_tokens,
        num_beams=args.beams,
    )
    if args.json:
        print(
            json.dumps({"before": str(args.before), "after": str(args.after), "caption": caption}, ensure_ascii=False)
        )
    else:
        print(caption)
    return 0
