"""One convention for results as JSON: `--json` prints it instead of text, `--out FILE` writes it."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onediff.errors import UserError


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds both options; `what` describes the JSON."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON; text goes to standard error")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the same JSON to FILE")


def with_json(args: argparse.Namespace, command: Callable[[argparse.Namespace], tuple[int, Any]]) -> int:
    """Runs `command`, which prints text and returns its exit code and its JSON; prints or writes the JSON if asked to.

    Raises UserError for a file that cannot be written, before the work starts.
    """
    if args.out is not None and (args.out.is_dir() or not os.access(args.out.parent, os.W_OK)):
        raise UserError(f"--out {args.out}: not a file that can be written")
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        code, value = command(args)
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    if args.out is not None:
        aside = args.out.with_name(f".tmp-{args.out.name}-{os.getpid()}")
        aside.write_text(text + "\n", encoding="utf-8")
        os.replace(aside, args.out)
    if args.json:
        is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
        print(text if is_utf8 else json.dumps(value, indent=1, default=str))
    return code
