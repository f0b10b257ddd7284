"""Compares every installed attention backend, forward and backward, with the fp64 reference."""

from __future__ import annotations

from typing import Any

from gpu_parts.attention import agreement
from gpu_parts.measure import Setting

from gpu_checks.outcome import Wrong
from onediff.model.attention import missing


def check(setting: Setting) -> dict[str, Any]:
    """Largest relative error of each backend; an installed backend must be able to compute every case."""
    largest: dict[str, float] = {}
    wrong = []
    for record in agreement(setting):
        name = record["backend"]
        if (why := missing(name)) is not None:
            largest[f"{name}: not here, {why}"] = 0.0
        elif not record.get("agrees"):
            wrong.append(f"{name}, {record['case']}: {record.get('not_measured') or record['gradient_error']}")
        else:
            found = max(record["error"], record["gradient_error"])
            largest[f"{name}, {record['dtype']}"] = max(found, largest.get(f"{name}, {record['dtype']}", 0.0))
    if wrong:
        raise Wrong("; ".join(wrong), errors=largest)
    return {"errors": largest}
