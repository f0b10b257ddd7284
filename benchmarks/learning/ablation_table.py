"""The ablation's cells as Markdown tables: one for each held-out set, with cells of the same settings side by side.

Means are over the seeds. Intervals of 95 % are by bootstrap over seeds and held-out pairs together; those of a single seed
hold the variation between pairs alone, and those of two or three seeds are too narrow, since so few seeds vary little in
a bootstrap. The worst and the best seed are therefore printed beside them. Differences are between the same seeds on the
same pairs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning.deltas import DELTAS, PEERS

BASELINE = ("vdm", False)
"""What other cells are compared with: the delta module, and whether with CST."""
GENERALIST = "both"
"""Trained on several sources; compared with the same cell trained on this one alone."""
RESAMPLES = 10_000
MEASURE = "captions right"
SHOWN = ("changed captions right", "false alarms", "shape right", "colour right", "name right", "place right")
"""Further scores, shown if any cell has them."""


class Setting(NamedTuple):
    """What all cells of a table have in common."""

    held_out: str
    """Folder of the split, and its digest."""
    pairs: int
    warm_up: int
    steps: int
    overrides: tuple[str, ...]

    @property
    def heading(self) -> str:
        """Above the table."""
        told = f"{self.held_out}, {self.pairs} pairs: {self.warm_up} steps of warm-up, {self.steps} after it"
        return "**" + ", ".join([told, *self.overrides]) + "**"


class Row(NamedTuple):
    """What all seeds of a row have in common."""

    on: str
    delta: str
    cst: bool
    coupled: int
    data: str
    """Digests of data and tower."""

    @property
    def place(self) -> tuple[Any, ...]:
        """The order of rows."""
        return self.on, (*DELTAS, *PEERS).index(self.delta), self.cst, self.coupled, self.data


Seeds = dict[int, dict[str, Any]]
"""`scores` and `right` on one held-out set, by seed."""


def tables(folder: Path) -> str:
    """All cells in `folder`."""
    found: dict[Setting, dict[Row, Seeds]] = {}
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text())
        told = record["settings"]
        row = Row(*(told[name] for name in ("on", "delta", "cst", "coupled")), json.dumps(told["data"], sort_keys=True))
        for split, scored in record["held_out"].items():
            held_out = f"{split} ({told['data'][split]})"
            sizes = (told["warm_up"], told["steps"], tuple(told["overrides"]))
            setting = Setting(held_out, len(scored["right"]), *sizes)
            found.setdefault(setting, {}).setdefault(row, {})[told["seed"]] = scored
    return "\n\n".join(f"{setting.heading}\n\n{table(rows)}" for setting, rows in sorted(found.items()))


def table(rows: dict[Row, Seeds]) -> str:
    """One Markdown table."""
    shown = [name for name in SHOWN if any(name in one["scores"] for seeds in rows.values() for one in seeds.values())]
    has_generalist = len({row.on for row in rows}) > 1
    heads = ["trained on", "delta", "CST", "seeds", MEASURE, "worst to best seed", "against vdm without CST"]
    heads += ["against training on this alone"] * has_generalist
    lines = [_line([*heads, *shown]), "|" + " --- |" * (len(heads) + len(shown))]
    for row in sorted(rows, key=lambda row: row.place):
        seeds = rows[row]
        told = [row.on, row.delta, f"{row.coupled} steps" if row.cst else "none", ", ".join(map(str, sorted(seeds)))]
        told += [summary(_right(seeds)), _span(seeds), _against(seeds, _baseline(row, rows))]
        told += [_against(seeds, _specialist(row, rows))] * has_generalist
        scores = [[one["scores"][name] for one in seeds.values() if name in one["scores"]] for name in shown]
        lines.append(_line([*told, *(f"{100 * float(np.mean(values)):.1f}" if values else "" for values in scores)]))
    return "\n".join(lines)


def summary(right: NDArray[np.float64], sign: str = "") -> str:
    """Mean and 95 % interval, in percent, of `[seeds, pairs]`; seeds and pairs are drawn with replacement."""
    rng = np.random.default_rng(0)
    seeds, pairs = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in right.shape)
    low, high = np.percentile(((seeds @ right) * pairs).sum(1), [2.5, 97.5])
    return f"{100 * right.mean():{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def _right(seeds: Seeds) -> NDArray[np.float64]:
    """`[seeds, pairs]`: 1 for a right caption, else 0."""
    return np.array([[float(one) for one in seeds[seed]["right"]] for seed in sorted(seeds)])


def _span(seeds: Seeds) -> str:
    """The worst and the best seed with their scores; empty for a single seed."""
    if len(seeds) < 2:
        return ""
    scores = sorted((100 * scored["scores"][MEASURE], seed) for seed, scored in seeds.items())
    (worst, of_worst), (best, of_best) = scores[0], scores[-1]
    return f"{worst:.1f} (seed {of_worst}) to {best:.1f} (seed {of_best})"


def _against(seeds: Seeds, others: Seeds) -> str:
    """The mean difference over the seeds that both have, with its interval; empty without any."""
    common = seeds.keys() & others.keys()
    if not common:
        return ""
    ours, theirs = (_right({seed: one[seed] for seed in common}) for one in (seeds, others))
    told = summary(ours - theirs, "+")
    if len(common) == len(seeds):
        return told
    return f"{told}, {'seed' if len(common) == 1 else 'seeds'} {', '.join(map(str, sorted(common)))}"


def _baseline(row: Row, rows: dict[Row, Seeds]) -> Seeds:
    """The baseline trained on the same data; empty for itself."""
    if (row.delta, row.cst) == BASELINE:
        return {}
    return next(
        (rows[one] for one in rows if (one.on, one.data, one.delta, one.cst) == (row.on, row.data, *BASELINE)), {}
    )


def _specialist(row: Row, rows: dict[Row, Seeds]) -> Seeds:
    """The same cell as a generalist's, trained on a single source; empty for others."""
    if row.on != GENERALIST:
        return {}
    alike = (row.delta, row.cst, row.coupled)
    return next((rows[one] for one in rows if one.on != GENERALIST and (one.delta, one.cst, one.coupled) == alike), {})


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
