"""Which MLflow a run is sent to, and how to look at it there. Fast, because it does not import MLflow."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from onediff.config.store import DATABASES, SQLITE, store_fault
from onediff.config.tracking import TrackingConfig
from onediff.errors import UserError
from onediff.tracking.scrub import scrubbed


def tracking_uri(run: Path, config: TrackingConfig) -> str:
    """Where a run is sent: as configured, else where its training sent it, else MLFLOW_TRACKING_URI, else next to it.

    `mlflow.db` is next to the run's folder, not inside, so that the runs in one folder share an MLflow.
    """
    beside = f"{SQLITE}{run.resolve().parent / 'mlflow.db'}"
    known, shell = remembered(run), here()
    if known and shell and without_secrets(shell) == known:
        known = shell
    return config.uri or known or shell or beside


def here(environ: Mapping[str, str] = os.environ) -> str | None:
    """The address in the environment, or None."""
    return environ.get("MLFLOW_TRACKING_URI") or None


def check_environment(config: TrackingConfig, environ: Mapping[str, str] = os.environ) -> None:
    """Raises UserError if the run would be sent to the address in the environment, and MLflow could not use it."""
    if config.uri is None and (uri := here(environ)) and (fault := store_fault(uri)):
        raise UserError(f"MLFLOW_TRACKING_URI: {fault}")


def remembered(run: Path) -> str | None:
    """The address in the run folder: MLFLOW_TRACKING_URI as it was during training."""
    path = run / "tracking" / "run.json"
    known: str | None = json.loads(path.read_text()).get("uri") if path.is_file() else None
    return known


def without_secrets(uri: str) -> str:
    """An address that is safe to store: without passwords, tokens and, for a server, the user."""
    if "@" not in uri and "?" not in uri:
        return uri
    parts = urlsplit(uri)
    user = f"{parts.username}@" if parts.username and not parts.scheme.startswith("http") else ""
    query = "&".join(pair for pair in parts.query.split("&") if scrubbed(pair) == pair)
    return urlunsplit(parts._replace(netloc=user + parts.netloc.rpartition("@")[2], query=query))


def artifact_folder(uri: str, run: Path) -> str | None:
    """Where a new experiment keeps artifacts: next to an embedded store, or next to `run` if the store is a database
    elsewhere, for which MLflow would use the working directory. None for a server, which decides itself."""
    if uri.startswith(SQLITE):
        return (database(uri).parent / "mlflow-artifacts").as_uri()
    if urlsplit(uri).scheme.partition("+")[0] in DATABASES:
        return (run.resolve().parent / "mlflow-artifacts").as_uri()
    return None


def database(uri: str) -> Path:
    """The file of an embedded store."""
    return Path(uri.removeprefix(SQLITE)).absolute()


def how_to_look(uri: str) -> str:
    """How to open MLflow on a store: a command that works inside and outside this environment, or the server's address.

    Without `workflowType`, MLflow opens its pages for chat applications, whatever the kind of experiment.
    """
    if uri.startswith("http"):
        return f"{uri.rstrip('/')}/#/experiments?workflowType=machine_learning"
    if not uri.startswith(SQLITE):
        return uri
    if database(uri).name != "mlflow.db":
        return f"{program('mlflow')} ui --backend-store-uri {shlex.quote(uri)}"
    return f"{program('onediff')} mlflow {shlex.quote(str(database(uri).parent))}"


def program(name: str) -> str:
    """The command for a program of this environment, activated or not."""
    return name if shutil.which(name) else shlex.quote(str(Path(sys.executable).with_name(name)))
