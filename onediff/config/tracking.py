"""Settings of MLflow and the journal."""

from __future__ import annotations

from pydantic import Field, field_validator

from onediff.config.section import Section
from onediff.config.store import store_fault


class TrackingConfig(Section):
    """MLflow and the journal. The journal in the run folder is always written; MLflow is fed from it."""

    experiment: str = "onediff"
    """MLflow experiment that holds the run."""
    sweep: str | None = None
    """The sweep of the run. An MLflow run of this name, created by the sweep's first run, becomes the parent of all of its
    runs."""
    uri: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI, else `mlflow.db` next to the run's folder."""
    register_as: str | None = None
    """Register every evaluated model as a version of this model in MLflow's model registry; by default none."""
    live: bool = True
    """Send to MLflow during the run. If false, for nodes that cannot reach the server, use `onediff track sync` later."""
    flush_seconds: float = Field(2.0, gt=0)
    """Seconds between reads of the journal, and so the delay until a point appears in MLflow."""
    request_seconds: float = Field(30.0, gt=0)
    """Timeout of a request to the MLflow server; failed requests are retried."""
    finish_seconds: float = Field(60.0, ge=0)
    """Longest wait for MLflow at the end of a run; unsent records stay in the journal."""
    upload_seconds: float = Field(1800.0, ge=0)
    """Longest wait for uploads of files and models at the end of a run, unless one has failed."""
    queue_records: int = Field(10_000, gt=0)
    """Records kept in memory while the run folder is not writable (disk full); older ones are dropped and counted."""
    system_seconds: float = Field(10.0, ge=1)
    """Seconds between readings of each node's CPUs, memory, disk, network and GPUs."""
    diff_bytes: int = Field(1_000_000, ge=0)
    """Size limit of the diff of uncommitted code stored with a run; a longer diff is cut."""

    @field_validator("uri")
    @classmethod
    def _is_store(cls, uri: str | None) -> str | None:
        if uri is not None and (fault := store_fault(uri)):
            raise ValueError(fault)
        return uri
