"""Let a language model compare captions with references, in addition to the metrics.

  onediff judge --references test.jsonl --predictions mine.jsonl --endpoint http://127.0.0.1:8000/v1 --model NAME
  onediff judge --items --references test.jsonl --predictions mine.jsonl --endpoint http://127.0.0.1:8000/v1 --model NAME

Without --items, each caption gets two marks. With it, the judge splits captions into atomic claims and compares each claim
with the list of true changes: recall of changes, invented claims, false alarms on pairs without a change. The judge itself
is tested on --controls captions that are known to be right and the same number that are known to be wrong.

The endpoint speaks the OpenAI chat protocol (vLLM, llama.cpp, Ollama, a hosted service). Its key is read from the
environment variable ONEDIFF_JUDGE_KEY. Captions and references are sent there; images are not. Answers are cached.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from onediff.amounts import at_least
from onediff.cli.output import add_json, with_json

if TYPE_CHECKING:
    from onediff.evaluation.files import References
    from onediff.llm import Asker

Found = TypeVar("Found")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--references", type=Path, required=True, metavar="REF", help="file of reference captions")
    parser.add_argument(
        "--predictions", type=Path, required=True, metavar="PRED", help="file with one caption per pair"
    )
    parser.add_argument("--items", action="store_true", help="judge by atomic claims")
    parser.add_argument("--endpoint", required=True, metavar="URL", help="base address, ending in /v1")
    parser.add_argument("--model", required=True, metavar="NAME", help="model to ask")
    parser.add_argument(
        "--cache", type=Path, default=Path("judge-cache.jsonl"), metavar="FILE", help="cache of answers"
    )
    parser.add_argument("--at-once", type=at_least(1), default=4, metavar="N", help="concurrent questions (default: 4)")
    parser.add_argument(
        "--attempts", type=at_least(1), default=4, metavar="N", help="attempts per question (default: 4)"
    )
    parser.add_argument(
        "--controls", type=at_least(0), default=10, metavar="N", help="known captions of each kind (default: 10)"
    )
    parser.add_argument(
        "--bootstrap",
        type=at_least(0),
        default=1000,
        metavar="N",
        help="bootstrap resamples (default: 1000, 0 for none)",
    )
    parser.add_argument("--allow-missing", action="store_true", help="judge only the pairs that have a caption")
    add_json(parser, "all results, including marks per pair,")


def run(args: argparse.Namespace) -> int:
    return with_json(args, judged)


def judged(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Prints the judge's results; returns the exit code and the results for JSON."""
    from onediff.evaluation.files import read_predictions, read_references
    from onediff.evaluation.judge import claims, marks
    from onediff.evaluation.scoring import unanswered
    from onediff.llm import Asker, Cache

    references = read_references(args.references)
    predictions = read_predictions(args.predictions, args.allow_missing)
    missing = unanswered(references.captions, references, [predictions], args.allow_missing)
    with closing(Cache(args.cache)) as cache:
        asker = Asker(
            cache,
            args.model,
            args.endpoint,
            concurrency=args.at_once,
            attempts=args.attempts,
            max_tokens=1000,
            key=os.environ.get("ONEDIFF_JUDGE_KEY") or "none",
            check=claims.usable if args.items else marks.read,
        )
        result, lines = (by_claims if args.items else by_marks)(args, asker, references, predictions)
    unjudged = len(predictions) - result["pairs"]
    print(
        f"{result['pairs']} pairs judged by {args.model}"
        + (f", {len(missing)} without a caption left out" if missing else "")
        + (f", {unjudged} without a usable answer: run the command again to ask for them" if unjudged else "")
    )
    print("\n".join(lines))
    return 1 if unjudged else 0, {"judge": args.model, **result, "missing": missing}


def by_marks(
    args: argparse.Namespace, asker: Asker, references: References, predictions: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Mean marks, as JSON and as lines."""
    from onediff.evaluation.judge.marks import Marks, marked

    found = answered(marked(asker, references.captions, predictions), len(predictions))
    means = {name: sum(getattr(one, name) for one in found.values()) / max(1, len(found)) for name in Marks._fields}
    per_pair = {pair: found[pair]._asdict() for pair in predictions if pair in found}
    return (
        {"pairs": len(found), "marks": means, "per_pair": per_pair},
        [f"{name:<13} {value:.3f}" for name, value in means.items()],
    )


def by_claims(
    args: argparse.Namespace, asker: Asker, references: References, predictions: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Scores of claims and the judge's results on the controls, as JSON and as lines."""
    from onediff.evaluation.judge.claims import controls, judged, scores, true_changes

    wanted = {pair: references.captions[pair] for pair in predictions}
    changes = answered(true_changes(asker, references._replace(captions=wanted)), len(wanted))
    asked = {pair: caption for pair, caption in predictions.items() if pair in changes}
    found = answered(judged(asker, changes, asked), len(asked))
    result: dict[str, Any] = {"pairs": len(found), **(scores(found, args.bootstrap, 0) if found else {"scores": {}})}
    lines = []
    for name, value in result["scores"].items():
        ends = result["intervals"].get(name)
        lines.append(
            f"{name:<16} {100 * value:6.1f}" + (f"  {100 * ends[0]:.1f} – {100 * ends[1]:.1f}" if ends else "")
        )
    result["controls"] = {}
    for kind, captions in controls(references, changes, args.controls).items() if args.controls else ():
        tried = answered(judged(asker, changes, captions), len(captions))
        right = sum(bool(one.row[1]) for one in tried.values())
        result["controls"][kind] = {"captions": len(tried), "judged right": right}
        lines.append(f"control: of {len(tried)} captions known to be {kind}, {right} judged right")
    result["per_pair"] = {
        pair: {"changes": found[pair].changes, "claims": found[pair].claims} for pair in predictions if pair in found
    }
    return result, lines


def answered(answers: Iterable[tuple[str, Found | None]], total: int) -> dict[str, Found]:
    """The answers as they arrive, with a progress bar."""
    from tqdm import tqdm

    shown = tqdm(answers, total=total, unit="pair", disable=None, leave=False)
    return {pair: answer for pair, answer in shown if answer is not None}
