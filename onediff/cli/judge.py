"""Let a language model compare captions with references, beside the classic scores.

  onediff judge --references test.jsonl --predictions mine.jsonl --endpoint http://127.0.0.1:8000/v1 --model NAME

The endpoint speaks the OpenAI chat protocol (vLLM, llama.cpp, Ollama, a service). Its key is read from the environment
variable ONEDIFF_JUDGE_KEY. Captions and references are sent there, images are not. Answers are cached.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--references", type=Path, required=True, metavar="REF", help="what people wrote")
    parser.add_argument("--predictions", type=Path, required=True, metavar="PRED", help="one caption for each pair")
    parser.add_argument("--endpoint", required=True, metavar="URL", help="base address, ending in /v1")
    parser.add_argument("--model", required=True, metavar="NAME", help="the model to ask there")
    parser.add_argument("--cache", type=Path, default=Path("judge-cache.jsonl"), metavar="FILE", help="kept answers")
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="questions under way (default 4)")
    parser.add_argument("--allow-missing", action="store_true", help="judge the pairs that have a caption")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write marks, per pair too")


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from onediff.errors import UserError
    from onediff.evaluation.files import read_predictions, read_references, write_aside
    from onediff.evaluation.judge import Judge
    from onediff.evaluation.scoring import unanswered

    if args.at_once < 1:
        raise UserError("--at-once is 1 or more")
    references = read_references(args.references).captions
    predictions = read_predictions(args.predictions, args.allow_missing)
    missing = unanswered(references, references, [predictions], args.allow_missing)
    judge = Judge(args.endpoint, args.model, args.cache, os.environ.get("ONEDIFF_JUDGE_KEY"), at_once=args.at_once)
    found = dict(tqdm(judge.judge(references, predictions), total=len(predictions), unit="pair", disable=None))
    marks = {
        name: sum(getattr(one, name) for one in found.values()) / len(found) for name in ("correctness", "completeness")
    }
    print(
        f"{len(found)} pairs judged by {args.model}"
        + (f", {len(missing)} without a caption left out" if missing else "")
    )
    print("\n".join(f"{name:<13} {value:.3f}" for name, value in marks.items()))
    if args.json is not None:
        per_pair = {pair: found[pair]._asdict() for pair in predictions}
        result = {"judge": args.model, "pairs": len(found), "marks": marks, "missing": missing, "per_pair": per_pair}
        write_aside(args.json, json.dumps(result, indent=1))
