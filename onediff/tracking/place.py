"""Where a run goes in MLflow, and how to look at it there. Knows nothing of MLflow itself, so that it answers at once."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from onediff.config.tracking import TrackingConfig

SQLITE = "sqlite:///"


def tracking_uri(run: Path, config: TrackingConfig) -> str:
    """Where a run is sent: the configuration, else MLFLOW_TRACKING_URI, else `mlflow.db` beside the run's folder.

    Beside, not inside: the runs below one folder are then compared in one MLflow.
    """
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{run.resolve().parent / 'mlflow.db'}"


def artifact_folder(uri: str) -> str | None:
    """Where a new experiment keeps artifacts: beside an embedded store; a server decides for itself."""
    return (database(uri).parent / "mlflow-artifacts").as_uri() if uri.startswith(SQLITE) else None


def database(uri: str) -> Path:
    """The file of an embedded store."""
    return Path(uri.removeprefix(SQLITE)).absolute()


def how_to_look(uri: str) -> str:
    """What opens MLflow on a store: a line to type, in this environment or outside it, or the server's own address."""
    if not uri.startswith(SQLITE):
        return uri
    return f"{program('mlflow')} ui --backend-store-uri {shlex.quote(uri)}"


def program(name: str) -> str:
    """How a program of this environment is typed, in it or outside it."""
    return name if shutil.which(name) else shlex.quote(str(Path(sys.executable).with_name(name)))
