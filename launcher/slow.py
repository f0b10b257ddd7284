"""Detect a slow node, so that the ranks can stop at a checkpoint and a spare can replace it.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence

from launcher.record import Attempt
from launcher.rules import Rule
from launcher.sections import Beat


class SlowNode:
    """Follows rank 0's reports on the slowest rank of `attempt`."""

    def __init__(self, attempt: Attempt, rule: Rule, spares: Sequence[str]) -> None:
        """`spares` are the nodes available as replacements."""
        self.attempt, self.rule, self.spares = attempt, rule, list(spares)
        self.seen = 0
        """Step of the last comparison."""
        self.row: list[tuple[str, float]] = []
        """Node of the slowest rank and its lag, for the latest consecutive comparisons that named the same node."""

    def look(self, beat: Beat | None) -> tuple[str, str] | None:
        """The node to replace and why, once confirmed and if there is a spare. Each comparison counts once."""
        if beat is None or not beat.slowest or self.rule.slow_share is None or not self.spares:
            return None
        step, rank, lag = int(beat.slowest["step"]), int(beat.slowest["rank"]), float(beat.slowest["share"])
        if step == self.seen:
            return None
        self.seen = step
        node = self.attempt.nodes[rank * len(self.attempt.nodes) // self.attempt.tasks]
        if lag < self.rule.slow_share:
            self.row = []
            return None
        self.row = [*(one for one in self.row if one[0] == node), (node, lag)]
        if len(self.row) < self.rule.slow_times:
            return None
        least = min(lag for _, lag in self.row)
        times = f"{len(self.row)} comparisons in a row"
        what = f" ({beat.slowest['by']})" if "by" in beat.slowest else ""
        return (
            node,
            f"rank {rank} on {node} was at least {100 * least:.0f} % slower than the median rank in {times}{what}",
        )
