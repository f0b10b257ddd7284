"""The page: facts, tables and pairs as JSON inside a template that holds all styles and scripts.

The page loads nothing from elsewhere; its content security policy forbids it. Pairs are drawn only when they scroll into
view, so thousands open as fast as a few.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onediff.evaluation.files import write_aside
from onediff.evaluation.metrics import scores_of
from onediff.evaluation.protocols import protocol as protocol_named
from onediff.evaluation.report.images import Source, thumbnail
from onediff.evaluation.scoring import Scores, require_comparable

TEMPLATE = Path(__file__).with_name("page.html")
SIDES = ((500, 192), (2000, 128), (10**9, 96))  # (up to this many pairs, thumbnail pixels)


def write_report(
    path: Path,
    scores: Scores,
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    change_types: Mapping[str, str] | None = None,
    *,
    title: str | None = None,
    beside: Mapping[str, Scores] | None = None,
    images: Source | None = None,
    image_bytes: int = 48_000_000,
    reliability: Mapping[str, Any] | None = None,
) -> None:
    """Writes the page at `path`.

    `beside` are other systems on the same pairs, such as the baselines, which become columns of the table. `images` maps
    an id to its images; once the thumbnails take `image_bytes`, the remaining pairs have none and the page says so. The
    best, worst and most surprising pairs get theirs first. `reliability` comes from `Knowledge.as_json`.
    Raises UserError if `path` cannot be written, or if `beside` was computed under other rules.
    """
    for other in (beside or {}).values():
        require_comparable(scores, other)
    rules = protocol_named(scores.protocol)
    order = rankings(scores)
    pairs = scored_cards(scores, order, references, predictions, change_types or {})
    notes = [*scores.notes, *without_images(add_images(pairs, images, image_bytes))]
    data = {
        "title": title or rules.title,
        "facts": {
            "protocol": f"{rules.name}: {rules.title}",
            "source": rules.source,
            "checked against": rules.provenance,
            "pairs": f"{len(scores.ids)} ({rules.pairs})",
            "references": f"{rules.references}; empty ones: {rules.empty_references}; {rules.repeated_ids}",
            "tokens": rules.tokenisation if scores.tokenisation == "ptb" else "a plain rule, Java was missing",
        },
        "notes": notes,
        "table": score_table(scores, beside or {}),
        "published": [
            {"model": one.model, "scores": dict(one.scores), "source": one.source} for one in rules.published
        ],
        "groups": [{"name": name, "pairs": n, "scores": dict(found)} for name, (n, found) in scores.groups.items()],
        "shown": scores.shown,
        "metrics": list(order["columns"]),
        "orders": list(order["ranks"]),
        "pairs": pairs,
        "reliability": reliability,
    }
    write_page(path, data)


def scored_cards(
    scores: Scores,
    order: Mapping[str, Mapping[str, np.ndarray]],
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    change_types: Mapping[str, str],
) -> list[dict[str, Any]]:
    """One card per pair, without images yet; a score that is undefined for a pair is null."""
    return [
        {
            "id": pair,
            "type": change_types.get(pair, ""),
            "refs": list(references[pair]),
            "pred": predictions[pair],
            "scores": [
                None if np.isnan(column[i]) else round(float(column[i]), 4) for column in order["columns"].values()
            ],
            "rank": [int(ranks[i]) for ranks in order["ranks"].values()],
        }
        for i, pair in enumerate(scores.ids)
    ]


def write_gallery(
    path: Path,
    cards: Sequence[Mapping[str, Any]],
    facts: Mapping[str, str],
    *,
    title: str = "Captions",
    block: str = "",
    kind: str = "",
) -> None:
    """Writes a page without scores, of cards `{"id", "refs", "pred", "images"}` in the given order.

    `pred` is None if nothing was predicted; `images` are encoded. A card may have a `type`, the `roles` of its images if
    they are not before and after, and a `fault`. `block` is shown unchanged above the cards; `kind` says what the types
    are if they are not change types. Raises UserError if `path` cannot be written.
    """
    found = {str(place): card["images"] for place, card in enumerate(cards)}
    made: list[dict[str, Any]] = [
        {"type": "", **card, "id": str(place), "images": None, "scores": [], "rank": [place]}
        for place, card in enumerate(cards)
    ]
    notes = without_images(add_images(made, found.get, 48_000_000))
    for card, given in zip(made, cards, strict=True):
        card["id"] = given["id"]
    data: dict[str, Any] = {"title": title, "facts": dict(facts), "notes": notes, "pairs": made, "block": block}
    data |= {"table": [], "published": [], "groups": [], "shown": [], "metrics": [], "orders": ["as given"]}
    write_page(path, data | {"kind": kind})


def without_images(left_out: int) -> list[str]:
    """The page's notice about cards without images."""
    return [f"{left_out} pairs are shown without images to bound the size of this page"] if left_out else []


def write_page(path: Path, data: Mapping[str, Any]) -> None:
    """The template with `data` in it."""
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("{{title}}", html.escape(data["title"])).replace("{{data}}", script_json(data))
    write_aside(path, text)


def rankings(scores: Scores) -> dict[str, dict[str, np.ndarray]]:
    """`columns`: per-pair scores that the page shows; `ranks`: each pair's place when sorted best, worst, and most
    surprising first. Best is a right caption if that is known, then a high CIDEr. A pair is surprising if the metrics
    disagree: its ranks by CIDEr and by METEOR (or ROUGE-L if METEOR is missing) are far apart, so a look at it tells more
    than the scores."""
    found = scores_of(scores.rows)
    columns = {name: found[name] for name in scores.shown}
    right, cider = (np.nan_to_num(found.get(name, np.zeros(len(scores.ids)))) for name in ("captions right", "CIDEr"))
    second = found.get("METEOR", found["ROUGE-L"])
    # The last metric breaks ties, which are common in the others.
    best = _places(np.lexsort((-second, -cider, -right)))
    surprise = np.abs(_standing(cider) - _standing(second))
    ranks = {"worst": len(best) - 1 - best, "best": best, "surprising": _places(np.argsort(-surprise, kind="stable"))}
    return {"columns": columns, "ranks": ranks}


def add_images(pairs: Sequence[dict[str, Any]], images: Source | None, limit: int) -> int:
    """Puts thumbnails into `pairs`, the most informative first; returns how many pairs have none for lack of space."""
    if images is None:
        return 0
    side = next(side for most, side in SIDES if len(pairs) <= most)
    used = left_out = 0
    for pair in sorted(pairs, key=lambda pair: min(pair["rank"])):
        if used >= limit:
            left_out += 1
            continue
        found = images(pair["id"])
        if found is not None:
            pair["images"] = [thumbnail(data, side) if data is not None else None for data in found]
            used += sum(len(uri) for uri in pair["images"] if uri)
    return left_out


def score_table(scores: Scores, beside: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """One row per metric: our score, its interval, and the others' scores."""
    return [
        {
            "metric": metric,
            "score": value,
            "interval": scores.intervals.get(metric),
            "beside": {name: other.scores.get(metric) for name, other in beside.items()},
        }
        for metric, value in scores.scores.items()
    ]


def script_json(data: Mapping[str, Any]) -> str:
    """JSON that is safe inside a script element, whatever the captions contain."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for letter in ("<", "\u2028", "\u2029"):
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _standing(values: np.ndarray) -> np.ndarray:
    """Rank of each value, the lowest first; equal values share their mean rank."""
    _, kind, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[kind]


def _places(order: np.ndarray) -> np.ndarray:
    """The inverse of a permutation: the position of each pair in `order`."""
    places = np.empty(len(order), dtype=int)
    places[order] = np.arange(len(order))
    return places
