"""The time spent by a phase, for the tracker, in this process and in earlier ones started by the launcher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onediff.runs.section import seconds_by_section


def goodput_metrics(run: Path, phase: str) -> dict[str, float]:
    """`time/goodput`, the share of time spent on steps taken for the first time, and `time/seconds/<kind>`.

    Without the launcher, counts only this process. Ignores an unreadable file.
    """
    try:
        earlier: dict[str, Any] = json.loads((run / "launch" / "goodput.json").read_text(encoding="utf-8")).get(
            phase, {}
        )
    except (OSError, ValueError):
        earlier = {}
    seconds = dict(earlier.get("seconds", {}))
    for name, spent in seconds_by_section().items():
        kind = "productive" if name == "step" else name
        seconds[kind] = seconds.get(kind, 0.0) + spent
    total = sum(seconds.values())
    if not total:
        return {}
    metrics = {f"time/seconds/{kind}": spent for kind, spent in seconds.items() if spent}
    recoveries = earlier.get("recoveries", [])
    if recoveries:
        metrics["time/recovery_seconds"] = sum(recoveries) / len(recoveries)
    return {"time/goodput": seconds.get("productive", 0.0) / total, **metrics}
