"""Open a page on this machine: drop two images in to get a caption and attention maps.

  onediff demo-page runs/demo
  onediff demo-page my-model --port 8000

The page is served on 127.0.0.1 only and loads nothing from the internet. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from onediff.amounts import at_least, port
from onediff.runs.address import Address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run, RUN@best or RUN@STEP of it, or an export")
    parser.add_argument(
        "--port", type=port, default=7860, metavar="N", help="port (default: 7860; 0 takes any free one)"
    )
    parser.add_argument(
        "--max-megabytes", type=at_least(1), default=64, metavar="N", help="largest upload (default: 64)"
    )


def run(args: argparse.Namespace) -> int:
    from onediff.cli.quiet import quiet_libraries

    Address.of(args.model).require()
    quiet_libraries()
    import onediff
    from onediff.serving.server import CaptionServer
    from onediff.training.export import saved_model_of

    captioner = onediff.load(saved_model_of(args.model))
    with CaptionServer(captioner, args.port, args.max_megabytes * 1_000_000) as server:
        print(f"open {server.address} (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0
