"""Sends artifacts, data sets, checkpoints and models, each by itself and apart from the points, so that none delays another.

The shipper notes each parcel that it finds in a journal and continues. A parcel that fails is retried after growing pauses
and continues from what has arrived; one that MLflow permanently rejects is left out and reported.
"""

from __future__ import annotations

import json
import logging
import posixpath
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException

from onediff.tracking.checkpoints import Checkpoints
from onediff.tracking.journal import Record, read
from onediff.tracking.names import TAG_TEXT
from onediff.tracking.refusal import no_such_route, reason, refused
from onediff.tracking.scrub import scrubbed
from onediff.tracking.state import Parcel, State
from onediff.tracking.stream import trained_as
from onediff.tracking.upload import below, upload

LOG = logging.getLogger(__name__)
TABLES = "mlflow.loggedArtifacts"
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 300.0


def parcel_of(record: Record) -> Parcel | None:
    """The parcel in a journal's record, or None."""
    if "artifact" in record:
        return Parcel(f"artifact {posixpath.join(record.get('to', ''), Path(record['artifact']).name)}")
    if "dataset" in record:
        return Parcel(f"data set {record['dataset']['name']}")
    if "model" in record:
        return Parcel(f"model {record['name']} ({record['model']})")
    if "checkpoints" in record:
        return Parcel(f"checkpoints of phase {record['phase']}")
    if "scores_of" in record:
        return Parcel(f"scores of phase {record['scores_of']['phase']}, step {record['scores_of']['step']}")
    return None


class Carrier:
    """Sends the parcels of one run folder to one MLflow store."""

    def __init__(self, client: MlflowClient, experiment: str, state: State, say: Callable[[str], None]) -> None:
        self.client = client
        self.experiment = experiment
        self.state = state
        self.say = say
        self.lost: set[str] = set()
        """Streams whose MLflow run was deleted."""
        self.said: set[str] = set()

    def carry(self, now: bool = False) -> int:
        """Tries every parcel that is due, or all of them; returns how many arrived."""
        ready = [one for one in self.state.parcels() if now or one[2].due <= time.time()]
        return sum(self._try(name, place, parcel) for name, place, parcel in ready)

    def _try(self, name: str, place: str, parcel: Parcel) -> bool:
        sent = self.state.sent(name)
        run_id = self.state.sent("run" if name.startswith("node-") else name).run_id
        _, record = next(read(self.state.run / "tracking" / f"{name}.jsonl", int(place)))
        through = False
        while True:
            before = (len(parcel.there), parcel.model_id)
            try:
                through = self._send(name, run_id, record, parcel)
                break
            except Exception as error:  # a store, a proxy or a network may answer anything
                if before != (len(parcel.there), parcel.model_id):
                    LOG.info("%s of %s: %s; continuing with the rest", parcel.what, name, reason(error))
                elif not self._failed(name, run_id, record, parcel, error):
                    return False
                else:
                    break
        with self.state.lock:
            sent.parcels.pop(place, None)
        self.state.save()
        return through

    def _failed(self, name: str, run_id: str, record: Record, parcel: Parcel, error: Exception) -> bool:
        """Records a failure, and reports it if it is new; returns whether the parcel is given up."""
        if no_such_route(error) and ("checkpoints" in record or "scores_of" in record):
            # The user did not request these, and the next checkpoint sends all that are kept by then.
            self._say_once(
                f"MLflow at {self._where(run_id, record)} is older than version 3: no models of checkpoints", "route"
            )
            return True
        if isinstance(error, MlflowException) and refused(error):
            try:
                if gone(self.client, run_id):
                    self.lost.add(name)
                    return False
            except MlflowException as unknown:
                LOG.warning(
                    "%s of %s: %s; it is also unknown whether the run exists: %s", parcel.what, name, error, unknown
                )
                return False
            if error.error_code == "INVALID_PARAMETER_VALUE":
                self.say(f"MLflow refuses the {parcel.what} of {name}: {reason(error)}; it is left out")
                return True
        with self.state.lock:
            parcel.tries += 1
            parcel.why = f"to {self._where(run_id, record)}: {reason(error)}"
            parcel.due = time.time() + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (parcel.tries - 1))
        self.state.save()
        LOG.info("%s of %s, try %d: %s", parcel.what, name, parcel.tries, parcel.why)
        line = f"the {parcel.what} of {name} cannot be sent {parcel.why}; it will be retried, and the rest continues"
        self._say_once(line, parcel.what.partition(" ")[0])
        return False

    def _say_once(self, line: str, kind: str) -> None:
        if kind not in self.said:
            self.said.add(kind)
            self.say(line)

    def _where(self, run_id: str, record: Record) -> str:
        store = scrubbed(self.client.tracking_uri)
        if "artifact" not in record:
            return store
        try:
            return f"{scrubbed(self.client.get_run(run_id).info.artifact_uri)} at {store}"
        except MlflowException:
            return store

    def _send(self, name: str, run_id: str, record: Record, parcel: Parcel) -> bool:
        """Sends a parcel; returns False if nothing of it is left to send."""
        if "artifact" in record:
            return self._artifact(run_id, record, parcel)
        if "dataset" in record:
            return self._dataset(run_id, record["dataset"])
        if "checkpoints" in record:
            Checkpoints(self.client, self.experiment, self.state).keep(record["phase"], record["checkpoints"])
            return True
        if scores_of := record.get("scores_of"):
            Checkpoints(self.client, self.experiment, self.state).scored(run_id, name, **scores_of)
            return True
        return self._model(run_id, record, parcel)

    def _artifact(self, run_id: str, record: Record, parcel: Parcel) -> bool:
        path, to = self.state.run / record["artifact"], record.get("to", "")
        files = below(path, to) if path.is_dir() else {posixpath.join(to, path.name): path}
        if not path.exists():
            self.say(f"the {parcel.what} no longer exists at {path}; it is left out")
            return False
        upload(files, parcel.there, partial(self.client.log_artifact, run_id), partial(self.state.noted, parcel))
        if record.get("table"):
            tables = json.loads(self.client.get_run(run_id).data.tags.get(TABLES, "[]"))
            entry = {"path": f"{to}/table.json", "type": "table"}
            tables = [*(one for one in tables if one != entry), entry]
            while len(json.dumps(tables)) > TAG_TEXT:
                tables.pop(0)
            self.client.set_tag(run_id, TABLES, json.dumps(tables))
        return True

    def _dataset(self, run_id: str, what: dict[str, Any]) -> bool:
        source = json.dumps({"uri": what["source"]})
        profile = json.dumps({"samples": what["samples"]})
        dataset = Dataset(what["name"], what["digest"], "local", source, profile=profile)
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", what["context"])])])
        return True

    def _model(self, run_id: str, record: Record, parcel: Parcel) -> bool:
        from onediff.tracking.registry import Registry

        folder = Path(record["model"])
        if not folder.is_dir() or trained_as(folder) != record["trained"]:
            self.say(f"{folder} now holds another model, which is not registered")
            return False
        Registry(self.client, self.experiment, self.state).register(run_id, folder, record, parcel)
        return True


def gone(client: MlflowClient, run_id: str) -> bool:
    """Whether somebody deleted a run."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "deleted")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return True
        raise
