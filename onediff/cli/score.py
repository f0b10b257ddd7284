"""Score captions against references; needs no model.

  onediff score --references test.jsonl --predictions mine.jsonl --protocol spot-the-diff
  onediff score --references gt.json --predictions mine.json --against other.json
  onediff score --references gt.csv --predictions mine.csv --out scores.json --report scores.html

Files are COCO-style JSON (`{"annotations": [{"image_id", "caption"}]}` or the bare list), JSON lines (`{"id",
"captions" or "caption", "change_type"?}`) or CSV (columns `id`, `caption`, `change_type`?). A caption may also be called
`text` or `prediction`, and an id `image_id`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onediff.amounts import at_least
from onediff.cli.output import add_json, with_json
from onediff.columns import in_columns

if TYPE_CHECKING:
    from onediff.evaluation.protocols import Protocol
    from onediff.evaluation.resampling import Difference
    from onediff.evaluation.scoring import Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from onediff.config.evaluation import PROTOCOLS

    parser.add_argument("--references", type=Path, required=True, metavar="REF", help="file of reference captions")
    parser.add_argument(
        "--predictions", type=Path, required=True, metavar="PRED", help="file with one caption per pair"
    )
    parser.add_argument("--protocol", default="plain", metavar="NAME", help=f"one of {', '.join(PROTOCOLS)}")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="OTHER",
        help="other predictions to compare with, or the JSON of an earlier score",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="score only the pairs that have a caption, and note it"
    )
    parser.add_argument(
        "--metrics",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,…",
        help="metrics in addition to the usual ones: spice, bertscore:MODEL, clipscore:MODEL, pacscore:MODEL, or your own",
    )
    parser.add_argument(
        "--bootstrap",
        type=at_least(0),
        default=1000,
        metavar="N",
        help="bootstrap resamples (default: 1000, 0 for none)",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="seed of the resampling (default: 0)")
    add_json(parser, "all results, including scores per pair,")
    parser.add_argument("--report", type=Path, metavar="HTML", help="write a report as one HTML page")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data set with the pairs' images")


def run(args: argparse.Namespace) -> int:
    return with_json(args, scored)


def scored(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Prints the scores; returns the exit code and the results for JSON. Raises UserError."""
    from onediff.errors import UserError
    from onediff.evaluation.files import read_predictions, read_references
    from onediff.evaluation.metrics import chosen
    from onediff.evaluation.protocols import protocol
    from onediff.evaluation.report.images import shard_images
    from onediff.evaluation.scoring import compare, score_all
    from onediff.outputs import check_output

    if args.data is not None and args.report is None and not args.metrics:
        raise UserError("--data names images for the report, or for a metric that needs them: add --report HTML")
    check_output(args.report, "--report")
    rules = protocol(args.protocol)
    references = read_references(args.references)
    systems = [read_predictions(args.predictions, args.allow_missing)]
    earlier = read_scores(args.against) if args.against is not None else None
    if args.against is not None and earlier is None:
        systems.append(read_predictions(args.against, args.allow_missing))
    images = shard_images(args.data, set(references.captions)) if args.data is not None else None
    metrics = chosen(args.metrics)
    found = score_all(references, systems, rules, metrics, args.allow_missing, args.bootstrap, args.seed, images)
    ours = found[0]
    differences = compare(ours, found[1], args.bootstrap, args.seed) if len(found) > 1 else {}
    if earlier is not None:
        require_same_rules(ours, earlier, args.against)
    print("\n".join(lines(ours, rules, differences, earlier["scores"] if earlier else None)))
    result = ours.as_json()
    if differences:
        result["against"] = {"file": str(args.against), **{k: d._asdict() for k, d in differences.items()}}
    if args.report is not None:
        from onediff.evaluation.report import write_report

        write_report(args.report, ours, references.captions, systems[0], references.change_types, images=images)
        print(f"\nreport: {args.report}")
    return 0, result


def lines(
    scores: Scores, rules: Protocol, differences: Mapping[str, Difference], earlier: Mapping[str, float | None] | None
) -> list[str]:
    """The table for a terminal, with published numbers beside ours, then notes."""
    head = ["×100", "score"] + (["95 % interval"] if scores.intervals else [])
    others: list[tuple[str, Mapping[str, float | None]]] = [(one.model, dict(one.scores)) for one in rules.published]
    if earlier is not None:
        others.insert(0, ("earlier", earlier))
    rows = [head + (["other", "difference", "p"] if differences else []) + [name for name, _ in others]]
    for metric, value in scores.scores.items():
        cells = [metric, _number(value)]
        if scores.intervals:
            low, high = scores.intervals.get(metric, (value, value))
            cells.append(f"{_number(low)} – {_number(high)}")
        if differences:
            one = differences.get(metric)
            cells += [_number(one.other), f"{100 * one.difference:+.1f}", _p(one.p)] if one else ["", "", ""]
        rows.append(cells + [_number(found.get(metric)) for _, found in others])
    found = [f"{rules.title} (protocol {rules.name}), {len(scores.ids)} pairs, tokens {scores.tokenisation}"]
    found += in_columns(rows, align=">")
    if scores.groups:
        shown = scores.shown
        rows = [[("group" if rules.groups else "change type") + " ×100", "pairs", *shown]]
        for name, (pairs, group) in scores.groups.items():
            rows.append([name, str(pairs), *(_number(group.get(metric)) for metric in shown)])
        found += ["", *in_columns(rows, align=">")]
    found += [f"note: {note}" for note in scores.notes]
    return found + ([f"note: protocol {rules.name} is {rules.provenance}"] if rules.checked is None else [])


def read_scores(path: Path) -> dict[str, Any] | None:
    """The scores that `--json` wrote to `path`; None if the file is something else, such as predictions."""
    from onediff.errors import UserError
    from onediff.evaluation.files import parsed, read_text

    if path.suffix.lower() != ".json":
        return None
    value = parsed(read_text(path), str(path))
    if not isinstance(value, dict) or "protocol" not in value:
        return None
    if not isinstance(value.get("scores"), dict):
        raise UserError(f"{path}: a score file that holds no scores; write it again with --json")
    return value


def require_same_rules(ours: Scores, earlier: Mapping[str, object], path: Path) -> None:
    """Raises UserError unless the numbers in an earlier --json file were computed like these."""
    from onediff.errors import UserError

    mine = {
        "protocol": ours.protocol,
        "tokenisation": ours.tokenisation,
        "references": ours.references,
        "pairs": len(ours.ids),
    }
    for what, value in mine.items():
        if earlier.get(what) != value:
            raise UserError(
                f"{path}: its {what} is {earlier.get(what)!r}, but here it is {value!r}: these scores cannot be compared"
            )


def _number(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
