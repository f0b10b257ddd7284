"""Records runs: in a journal in the run's folder, the source of truth, and in MLflow, where people look at it.

The training process only appends lines to the journal. Another process sends them to MLflow, so neither a slow server
nor the import of MLflow slows down a step; what could not be sent stays in the journal for `onediff track sync`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onediff.tracking.node import NodeMetrics
    from onediff.tracking.tracker import Tracker

__all__ = ["NodeMetrics", "Tracker"]


def __getattr__(name: str) -> Any:
    """Imports `Tracker` and `NodeMetrics` on first use: loading the configuration must not wait for their imports."""
    if name == "Tracker":
        from onediff.tracking.tracker import Tracker

        return Tracker
    if name == "NodeMetrics":
        from onediff.tracking.node import NodeMetrics

        return NodeMetrics
    raise AttributeError(name)
