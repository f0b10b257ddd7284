"""Which steps torch's profiler traces."""

from __future__ import annotations

from pydantic import Field

from onediff.config.section import Section


class ProfileConfig(Section):
    """Traces of a few steps of each phase, one file per rank, kept in the run folder and as MLflow artifacts."""

    steps: int = Field(3, gt=0)
    """How many consecutive steps are traced. A step of a 7B model makes tens of thousands of events, a few MB compressed."""
    wait: int = Field(5, ge=0)
    """Steps of a start that pass before the first traced one: the first few compile, allocate and fill caches."""
    where: str = Field("profile", min_length=1)
    """Folder for the traces, relative to the run folder. Rank 0 uploads what it can see there, so name a shared folder."""
