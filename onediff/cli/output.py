"""One convention for results as JSON: `--json` prints it instead of text, `--out FILE` (or `--report FILE`) writes it."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onediff.atomic import write_whole
from onediff.outputs import check_output, writing


def add_json(parser: argparse.ArgumentParser, what: str, file: str = "--out") -> None:
    """Adds both options; `what` describes the JSON, `file` is `--report` if `--out` is a folder."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON; text goes to standard error")
    parser.add_argument(file, dest="json_file", type=Path, metavar="FILE", help="write the same JSON to FILE")
    parser.set_defaults(json_option=file)


def with_json(args: argparse.Namespace, command: Callable[[argparse.Namespace], tuple[int, Any]]) -> int:
    """Runs `command`, which prints text and returns its exit code and results; prints or writes these as JSON if asked to.

    Raises UserError before the work starts if the file cannot be written.
    """
    path: Path | None = args.json_file
    check_output(path, args.json_option)
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        code, value = command(args)
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    if path is not None:
        _write(path, text + "\n")
    if args.json:
        is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
        print(text if is_utf8 else json.dumps(value, indent=1, default=str))
    return code


def _write(path: Path, text: str) -> None:
    """Raises UserError."""
    with writing(path):
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")  # a pipe or a terminal is not replaced by a file
            return
        write_whole(path, text)
