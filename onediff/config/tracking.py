"""Where a run is recorded, and how often."""

from __future__ import annotations

from pydantic import Field

from onediff.config.section import Section


class TrackingConfig(Section):
    """MLflow and the journal. The journal in the run folder is always written; MLflow is filled from it."""

    experiment: str = "onediff"
    """MLflow experiment that holds the run."""
    sweep: str | None = None
    """The sweep that the run belongs to: the MLflow run of this name, created by the first run of the sweep, is the
    parent of all of them."""
    uri: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI, or else `mlflow.db` next to the run's folder."""
    register_as: str | None = None
    """Register every evaluated model as a version under this name in MLflow's model registry; by default none is
    registered."""
    live: bool = True
    """Send to MLflow during the run. If false (for nodes that cannot reach the server), `onediff track sync` sends later."""
    flush_seconds: float = Field(2.0, gt=0)
    """Seconds between two reads of the journal; a point appears in MLflow about this much later."""
    request_seconds: float = Field(30.0, gt=0)
    """Longest wait for one answer of the MLflow server; then the request counts as failed and is retried later."""
    finish_seconds: float = Field(60.0, ge=0)
    """Longest wait for MLflow at the end of a run; what has not been sent stays in the journal."""
    upload_seconds: float = Field(1800.0, ge=0)
    """Longest wait at the end of a run for uploads of files and models, as long as none has failed."""
    queue_records: int = Field(10_000, gt=0)
    """Records kept in memory while the run folder cannot be written (disk full); older ones are dropped and counted."""
    system_seconds: float = Field(10.0, ge=1)
    """Seconds between two readings of every node's processors, memory, disk, network and GPUs."""
    diff_bytes: int = Field(1_000_000, ge=0)
    """The longest diff of uncommitted code that is kept with a run; a longer one is cut."""
