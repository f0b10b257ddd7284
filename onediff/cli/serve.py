"""Serve a model over HTTP: an OpenAI-compatible endpoint, a page, and metrics.

  onediff serve my-model
  onediff serve runs/demo@best --port 8080 --max-batch 32
  onediff serve my-model --host 0.0.0.0 --api-key-file key.txt

Pairs that arrive while the model is busy are captioned together. Clients send two images as data: URLs in one user message
to /v1/chat/completions. / is a page for people, /metrics is for Prometheus. The server listens on 127.0.0.1 by default.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from onediff.amounts import at_least, port
from onediff.errors import UserError
from onediff.runs.address import Address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run, RUN@best or RUN@STEP of it, or an export")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=port, default=8000, metavar="N", help="port (default: 8000; 0 takes any free one)"
    )
    parser.add_argument(
        "--max-batch", type=at_least(1), default=16, metavar="N", help="pairs captioned at once (default: 16)"
    )
    parser.add_argument(
        "--max-waiting",
        type=at_least(1),
        default=512,
        metavar="N",
        help="longest queue of requests; further ones get a 503 (default: 512)",
    )
    parser.add_argument(
        "--max-megabytes", type=at_least(1), default=64, metavar="N", help="largest request (default: 64)"
    )
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the key that clients must send")


def run(args: argparse.Namespace) -> int:
    from onediff.cli.quiet import quiet_libraries

    Address.of(args.model).require()
    key = read_key(args.api_key_file)
    quiet_libraries()
    import onediff
    from onediff.serving.server import CaptionServer
    from onediff.training.export import saved_model_of

    captioner = onediff.load(saved_model_of(args.model))
    limits = {"max_batch": args.max_batch, "max_waiting": args.max_waiting, "api_key": key}
    options = {**limits, "host": args.host, "name": args.model.name}
    with CaptionServer(captioner, args.port, args.max_megabytes * 1_000_000, **options) as server:
        print(f"{server.address} captions pairs; the endpoint is {server.address}v1 (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0


def read_key(file: Path | None) -> str | None:
    """The key in a file. Raises UserError if the file is missing or empty."""
    if file is None:
        return None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"--api-key-file {file}: {error.strerror}") from None
    if not key:
        raise UserError(f"--api-key-file {file}: is empty")
    return key
