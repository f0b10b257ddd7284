"""Opens an MLflow store and its experiment, and creates them if they are missing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from onediff.config.store import SQLITE
from onediff.tracking.moved import readdress
from onediff.tracking.place import artifact_folder, database


def experiment_of(client: MlflowClient, uri: str, name: str, run: Path) -> str:
    """Id of the experiment `name`, created if missing and restored if it was deleted.

    `run` is the folder of the run that needs it.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        # MLflow's pages then open on training runs instead of the traces of a chat application.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_folder(uri, run), kind))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def one_try(seconds: float) -> None:
    """Makes MLflow quiet, and give up a request after `seconds`: its own retries would block a call for minutes."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(seconds)))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


@contextmanager
def ready_store(uri: str) -> Iterator[None]:
    """Creates an embedded store if there is none: completely or not at all, and by one run at a time.

    MLflow creates its tables in dozens of steps; a process killed in between would leave a broken file behind.
    """
    if not uri.startswith(SQLITE):
        yield
        return
    path = database(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            aside = path.with_name(f".tmp-{path.name}")
            aside.unlink(missing_ok=True)
            MlflowClient(f"{SQLITE}{aside}").search_experiments(max_results=1)
            os.replace(aside, path)
        readdress(path)
        yield
