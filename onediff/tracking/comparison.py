"""Makes runs comparable in MLflow: copies the results of a run's children to the run itself, and its settings to them.

MLflow filters, sorts and plots by the contents of one MLflow run. Without the copies, a run's parameters and its losses and
scores would be in different ones, and `metrics.CIDEr > 3 and params.optimizer.lr = '0.001'` would find nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onediff.tracking.journal import read

OF_A_PHASE = ("loss", "validation/", "evaluation/", "tokens_per_second", "mfu", "skipped_steps")
"""The metrics that a phase contributes to its run. MLflow shows charts for the first names only, so there are no others."""
NOT_DECISIVE = ("name", "tracking.", "parallel.")
"""Settings that do not change results."""


@dataclass
class Results:
    """The newest value of every metric in one journal. Each call reads on from the end of the last one."""

    offset: int = 0
    values: dict[str, tuple[float, int, int]] = field(default_factory=dict)
    """Metric → value, step, and time in milliseconds."""

    def read_to(self, journal: Path, end: int) -> dict[str, tuple[float, int]]:
        """Value and time of each metric used to compare runs, from the first `end` bytes of `journal`."""
        for offset, record in read(journal, self.offset, end - self.offset) if self.offset < end else ():
            self.offset = offset
            if "open" in record:  # ignores records after the step that it resumes from
                known, step = self.values, record["open"]["step"]
                self.values = {key: one for key, one in known.items() if one[1] <= step}
            for key, value in record.get("metrics", {}).items():
                self.values[key] = (value, record["step"], record["time"])
        wanted = OF_A_PHASE if journal.stem.startswith("phase-") else ""
        return {key: (value, time) for key, (value, _, time) in self.values.items() if key.startswith(wanted)}


def decisive(stream: str, params: Mapping[str, str]) -> dict[str, str]:
    """The run's parameters that affect the child `stream`; for a phase, without those of other phases."""
    kind, _, name = stream.partition("-")
    foreign = ("evaluation.",) if kind == "phase" else ()
    return {
        key: text
        for key, text in params.items()
        if not key.startswith((*NOT_DECISIVE, *foreign))
        and (kind != "phase" or not key.startswith("phases.") or key.startswith(f"phases.{name}."))
    }
