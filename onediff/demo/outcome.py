"""Summarises a run of the demo in a few lines, the most telling first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from onediff.data.heldout import HeldOut
from onediff.demo.sheet import save_sheet, worst_and_best
from onediff.evaluation.items import score

DETAILS = ("changed captions right", "false alarms", "missed changes")
ATTRIBUTES = ("shape", "colour", "size", "material", "place")
HARDEST = 3
"""Change types that are named: those with the fewest right captions."""
ROWS = 6
"""Captions in each column of the sheet."""


def outcome(run: Path, split: Path) -> Iterator[str]:
    """The lines, from the newest evaluation of `run` on the pairs in `split`; draws the sheet named in the last line."""
    scored = max((run / "evaluation").glob("*/scores.json"), key=lambda file: file.stat().st_mtime)
    lines = (scored.parent / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    captions = {record["id"]: record["caption"] for record in map(json.loads, lines)}
    heldout = HeldOut.open(split)
    items = score(captions, {pair: heldout.changes[pair] for pair in captions}, bootstrap=1000)
    found = {name: f"{100 * value:.1f} %" for name, value in items.values.items()}
    low, high = (f"{100 * value:.1f}" for value in items.intervals["captions right"])
    yield f"Captions right: {found['captions right']} of {len(captions)} held-out pairs (95 %: {low} to {high})"
    details = [f"{name} {found[name]}" for name in DETAILS if name in found]
    kinds = json.loads(scored.read_text(encoding="utf-8")).get("scores", {}).get("change type")
    details += [] if kinds is None else [f"change type right {100 * kinds:.1f} %"]
    yield "            " + ", ".join(details)
    hardest = sorted((scores["captions right"], kind, pairs) for kind, (pairs, scores) in items.by_type.items())[
        :HARDEST
    ]
    yield "            hardest: " + ", ".join(
        f"{kind} {100 * right:.1f} % of {pairs}" for right, kind, pairs in hardest
    )
    told = [f"{name} {found[f'{name} right']}" for name in ATTRIBUTES if f"{name} right" in found]
    yield "Attributes: " + ", ".join(told)
    sheet = scored.parent / "worst-and-best.png"
    save_sheet(*worst_and_best(items, captions, ROWS), heldout, sheet)
    yield f"Look at:    {sheet}"
