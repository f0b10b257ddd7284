"""Have a language model write difference captions from texts about the pairs, at any OpenAI-compatible endpoint.

The pairs come from a reader, as in 'onediff data convert'. The prompt may use {edit}, {caption_before}, {caption_after},
{caption} and any other text field that the reader keeps. The result is a table for 'onediff data convert generic'. Answers
are cached in OUT.answers.jsonl: a second run costs nothing, and an interrupted one resumes. Answers that cannot be captions
(refusals, answers that are too long or talk about captions) are counted and written to OUT.rejected.jsonl.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from data_prep.captioning.table import caption_rows, read_prompt
from data_prep.readers import Inputs, reader
from onediff.amounts import amount, at_least, positive
from onediff.llm import Asker, Cache
from onediff.outputs import check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", help="reader of the pairs, such as instruct-pix2pix or generic")
    add(
        "--annotations",
        "--table",
        dest="annotations",
        type=Path,
        metavar="PATH",
        help="annotation file, folder or table",
    )
    add("--images", type=Path, metavar="PATH", help="folder of images, for readers that need it to find the pairs")
    add("--out", type=Path, required=True, metavar="FILE.jsonl", help="the table to write")
    add("--model", required=True, help="name of the model at the endpoint")
    add("--base-url", metavar="URL", help="endpoint (default: OPENAI_BASE_URL, else OpenAI's)")
    add("--prompt", default="edit", metavar="NAME|FILE", help="'edit', 'pair', or your own file (default: edit)")
    add("--concurrency", type=at_least(1), default=8, metavar="N", help="concurrent requests (default: 8)")
    add("--per-minute", type=positive, metavar="N", help="maximum requests per minute (default: no limit)")
    add("--attempts", type=at_least(1), default=8, metavar="N", help="attempts per question (default: 8)")
    add("--timeout", type=positive, default=60, metavar="SECONDS", help="timeout of a request (default: 60)")
    add("--price-in", type=amount, default=0.0, metavar="X", help="price per million prompt tokens")
    add("--price-out", type=amount, default=0.0, metavar="X", help="price per million answer tokens")


def run(args: argparse.Namespace) -> int:
    prompt = read_prompt(args.prompt)
    check_output(args.out, "--out")
    rows = list(reader(args.name).rows(Inputs(args.annotations, args.images)))
    options = {name: getattr(args, name) for name in ("concurrency", "per_minute", "attempts", "timeout")}
    with closing(Cache(args.out.with_name(args.out.name + ".answers.jsonl"))) as cache:
        asker = Asker(cache, args.model, args.base_url, **options)
        counts = caption_rows(rows, prompt, asker, args.out)
    rejected = {what: number for what, number in counts.items() if what.startswith("rejected")}
    print(
        f"{args.out}: {len(rows):,} pairs, {counts['good']:,} captioned, {sum(rejected.values()):,} rejected, "
        f"{counts['failed']:,} failed"
    )
    for what, number in sorted([*rejected.items(), *asker.counts.items()]):
        print(f"  {what}: {number:,}")
    cost = (counts["tokens in"] * args.price_in + counts["tokens out"] * args.price_out) / 1e6
    price = f"; cost {cost:.2f}" if cost else ""
    print(f"  tokens: {counts['tokens in']:,} in, {counts['tokens out']:,} out{price} (all runs)")
    return 1 if counts["failed"] else 0
