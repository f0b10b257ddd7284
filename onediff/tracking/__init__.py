"""Where a run is recorded: a journal in its folder, which is the truth, and MLflow, where people look at it.

The training process only appends lines to the journal. A process beside it ships them to MLflow, so that neither a slow
server nor the import of MLflow ever costs a step; what could not be sent stays in the journal for `onediff track sync`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onediff.tracking.node import NodeMetrics
    from onediff.tracking.tracker import Tracker

__all__ = ["NodeMetrics", "Tracker"]


def __getattr__(name: str) -> Any:
    """`Tracker` and `NodeMetrics` when they are asked for: the configuration must not wait for what they import."""
    if name == "Tracker":
        from onediff.tracking.tracker import Tracker

        return Tracker
    if name == "NodeMetrics":
        from onediff.tracking.node import NodeMetrics

        return NodeMetrics
    raise AttributeError(name)
