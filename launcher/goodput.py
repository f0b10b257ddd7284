"""Goodput of a phase: how much of its time made progress, where the rest went, and how long each recovery took.

Standard library only.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

from launcher.record import Attempt, Json, Record

KINDS = ("productive", "queue", "start", "loading", "repeat", "hang", "saving", "evaluation", "other")
"""In order: steps done for the first time; waiting for nodes; node checks, Python and imports; loading weights and data;
repeated steps; a hang, from its last progress to its end; checkpoints; validation, evaluation and captions; the rest."""
OF_SECTION = {"validation": "evaluation", "captions": "evaluation", "evaluation": "evaluation", "saving": "saving"}
OF_SECTION |= {"start": "start", "loading": "loading"}


class Recovery(NamedTuple):
    """Seconds from the failure of one attempt to the first new step of the next."""

    attempt: int
    how: str
    """`restart` or `requeue`."""
    notice: float
    """Until the supervisor had ended the remaining ranks."""
    queue: float
    """Until the next attempt began."""
    check: float
    """Until the ranks were started."""
    start: float
    """Python, imports, weights and data, as measured by rank 0."""
    steps: float
    """Until the first step that had not been done before."""

    @property
    def total(self) -> float:
        return self.notice + self.queue + self.check + self.start + self.steps


def seconds_by_kind(record: Record, phase: str, now: float | None = None) -> dict[str, float]:
    """Seconds of the phase by kind, from its submission (or the end of the previous phase) to its end or to `now`."""
    found = dict.fromkeys(KINDS, 0.0)
    attempts, now = record.attempts(phase), time.time() if now is None else now
    before = waited_since(record, phase)
    for attempt in attempts:
        if before is not None:
            found["queue"] += max(0.0, attempt.started - before)
        end = attempt.ended or now
        for kind, seconds in of_attempt(attempt, end).items():
            found[kind] += seconds
        before = end
    return found


def of_attempt(attempt: Attempt, end: float) -> dict[str, float]:
    """The same for one attempt, without its wait."""
    found = dict.fromkeys(KINDS, 0.0)
    launched = attempt.launched or end
    found["start"] += launched - attempt.started
    for section, seconds in attempt.seconds.items():
        kind = "productive" if section == "step" else OF_SECTION.get(section, "other")
        found[kind] += seconds
    repeated = found["productive"] if attempt.moved is None else min(attempt.repeated, found["productive"])
    found["productive"] -= repeated
    found["repeat"] += repeated
    rest = max(0.0, end - launched - sum(attempt.seconds.values()))
    found["hang" if attempt.cause == "hang" else "other" if attempt.seconds else "start"] += rest
    return found


def waited_since(record: Record, phase: str) -> float | None:
    """The earliest time the phase could have begun: its submission, or the end of the previous phase."""
    submitted = [entry["submitted"] for entry in record.jobs() if entry["phase"] == phase]
    first = record.attempts(phase)[:1]
    if not submitted or not first:
        return None
    earlier = [a.ended for other in record.plan().get("phases", {}) if other != phase for a in record.attempts(other)]
    ends = [ended for ended in earlier if ended is not None and ended <= first[0].started]
    return max([submitted[0], *ends]) if submitted[0] <= first[0].started else None


def recoveries(attempts: Sequence[Attempt]) -> list[Recovery]:
    """Every failure that the phase recovered from."""
    found = []
    for last, following in itertools.pairwise(attempts):
        if last.failed is None or last.ended is None or following.launched is None or following.moved is None:
            continue
        start = min(
            following.seconds.get("start", 0.0) + following.seconds.get("loading", 0.0),
            following.moved - following.launched,
        )
        found.append(
            Recovery(
                last.number,
                last.action or "",
                last.ended - last.failed,
                following.started - last.ended,
                following.launched - following.started,
                start,
                following.moved - following.launched - start,
            )
        )
    return found


def summary(record: Record, phase: str) -> Json:
    """Fraction of productive time, seconds by kind, and recoveries, for `status --json` and the tracker."""
    seconds = seconds_by_kind(record, phase)
    total = sum(seconds.values())
    return {
        "goodput": round(seconds["productive"] / total, 4) if total else None,
        "seconds": {kind: round(spent, 1) for kind, spent in seconds.items()},
        "recoveries": [round(one.total, 1) for one in recoveries(record.attempts(phase))],
    }


def earlier(record: Record, phase: str) -> Json:
    """Seconds and recoveries of the finished attempts, which the ranks add to their own."""
    ended = [attempt for attempt in record.attempts(phase) if attempt.ended is not None]
    queued = seconds_by_kind(record, phase)["queue"]
    seconds = {"queue": queued}
    for attempt in ended:
        for kind, spent in of_attempt(attempt, attempt.ended or 0.0).items():
            seconds[kind] = seconds.get(kind, 0.0) + spent
    told = [round(one.total, 1) for one in recoveries(record.attempts(phase))]
    return {"seconds": {kind: round(spent, 1) for kind, spent in seconds.items()}, "recoveries": told}


def in_words(record: Record, phase: str) -> str:
    """`goodput 83 % of 4h12m; queue 3m10s, start 5m02s; recovered in 42 s, 55 s`; empty before the first step."""
    seconds = seconds_by_kind(record, phase)
    total = sum(seconds.values())
    if not total or not any(attempt.seconds for attempt in record.attempts(phase)):
        return ""
    rest = ", ".join(f"{kind} {spoken(seconds[kind])}" for kind in KINDS[1:] if seconds[kind] >= 1)
    text = f"goodput {100 * seconds['productive'] / total:.0f} % of {spoken(total)}"
    times = [f"{one.total:.0f} s" for one in recoveries(record.attempts(phase))]
    return "; ".join(filter(None, [text, rest, f"recovered in {', '.join(times)}" if times else ""]))


def spoken(seconds: float) -> str:
    """`3700` as `1h01m`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"
