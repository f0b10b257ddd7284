"""Settings of torch's profiler."""

from __future__ import annotations

from pydantic import Field

from onediff.config.section import Section


class ProfileConfig(Section):
    """Traces a few steps of each phase into one file per rank, kept in the run folder and as MLflow artifacts."""

    steps: int = Field(3, gt=0)
    """Number of consecutive steps to trace. A step of a 7B model has tens of thousands of events, a few MB compressed."""
    wait: int = Field(5, ge=0)
    """Steps to skip before the trace, because the first few compile, allocate and fill caches."""
    where: str = Field("profile", min_length=1)
    """Folder for the traces, relative to the run folder. Use a shared folder, because rank 0 uploads what it finds there."""
