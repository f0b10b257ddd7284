"""From the journals to MLflow. Everything is safe to send twice, so a lost answer or a killed sender costs nothing.

MLflow keeps every point it was ever given, so a stream that is taken up again from below its last sent step gets a new
MLflow run, filled from the journal, and the old one is deleted (`mlflow gc` frees its space).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from onediff.config.tracking import TrackingConfig
from onediff.tracking.journal import Record, openings, read
from onediff.tracking.place import SQLITE, artifact_folder, database, tracking_uri
from onediff.tracking.scrub import scrubbed
from onediff.tracking.state import Sent, State, journals
from onediff.tracking.stream import trained_as

LOG = logging.getLogger(__name__)
IDENTITY = "onediff.stream"
SWEEP = "onediff.sweep"
PARENT = "mlflow.parentRunId"
TABLES = "mlflow.loggedArtifacts"
METRICS, PARAMS = 1000, 100  # most that MLflow takes in one request
PARAM_TEXT, TAG_TEXT = 6000, 8000  # longest values that every MLflow store takes
NOT_A_NAME = re.compile(r"[^\w.\-/: ]")
REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


class Shipper:
    """Sends what is new in the journals of one run folder to one MLflow store."""

    def __init__(self, run: Path, uri: str | None = None) -> None:
        self.run = run
        known = json.loads((run / "tracking" / "run.json").read_text())
        self.identity: str = known["id"]
        self.config = TrackingConfig(**known["config"])
        self.uri = uri or tracking_uri(run, self.config)
        self.state = State.load(run)
        where = scrubbed(f"{self.uri} {self.config.experiment}")
        if self.state.where != where:
            self.state = State(run, where)
        self.starts: dict[str, list[tuple[int, Record]]] = {}
        self.looked: dict[str, int] = {}
        self.experiment = ""

    def connect(self) -> None:
        """Reaches the store and finds or makes the experiment. Raises whatever MLflow raises when it cannot."""
        with ready_store(self.uri):
            self.client = MlflowClient(self.uri, self.uri)
            found = self.client.get_experiment_by_name(self.config.experiment)
            if found is None:
                place = artifact_folder(self.uri)
                try:
                    self.experiment = self.client.create_experiment(self.config.experiment, place)
                    return
                except MlflowException as error:
                    found = self.client.get_experiment_by_name(self.config.experiment)
                    if found is None:
                        raise error
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            self.experiment = found.experiment_id

    def ship(self) -> int:
        """Sends everything that lies in the journals now; returns the number of records. Raises what MLflow raises."""
        if not self.experiment:
            self.connect()
        return sum(self._ship_stream(path) for path in journals(self.run))

    def end_as(self, status: str) -> None:
        """Ends every MLflow run whose stream has not ended: the process that wrote it is gone."""
        for name, sent in self.state.streams.items():
            if name.startswith("node-") or not sent.run_id:
                continue
            if self.client.get_run(sent.run_id).info.status == "RUNNING":
                self.client.set_terminated(sent.run_id, status)

    def _ship_stream(self, path: Path) -> int:
        name, count = path.stem, 0
        sent = self.state.sent(name)
        size = path.stat().st_size  # looked at first: a start that comes later is for the next time
        starts = self._starts_of(path)
        parent = self.state.sent("run").run_id
        if name.startswith("node-") and sent.run_id != parent:
            sent.run_id, sent.offset, sent.through = parent, 0, -1
        if any(at > sent.offset and start["open"]["step"] < sent.through for at, start in starts):
            self._replace(name)
            sent = self.state.sent(name)
        while sent.offset < size:
            batch: list[tuple[int, Record]] = []
            metrics = 0
            for offset, record in read(path, sent.offset):
                alone = "metrics" not in record
                if offset > size or (alone and batch):
                    break
                batch.append((offset, record))
                metrics += len(record.get("metrics", ()))
                if alone or metrics >= METRICS - 50:
                    break
            if not batch:
                break
            self._send(name, batch, starts)
            sent = self.state.sent(name)
            count += len(batch)
        return count

    def _starts_of(self, path: Path) -> list[tuple[int, Record]]:
        """Openings of a stream, looked for only behind what was found or sent before."""
        name, seen = path.stem, self.looked.get(path.stem, 0)
        found = openings(path, seen)
        self.starts.setdefault(name, []).extend(found)
        # What lies before the sent offset was looked through already when it was sent, or just now.
        self.looked[name] = max(found[-1][0] if found else seen, self.state.sent(name).offset)
        return self.starts[name]

    def _send(self, name: str, batch: list[tuple[int, Record]], starts: list[tuple[int, Record]]) -> None:
        """Sends records of one stream and notes how far it came; a record that the store refuses for good is left out."""
        sent = self.state.sent(name)
        wanted = [record for offset, record in batch if not superseded(offset, record, starts)]
        through = max([sent.through, *(record["step"] for record in wanted if "step" in record)])
        if through > sent.through and not name.startswith("node-"):
            # Noted before it is sent: should this process be killed in between, a restart still knows what may be there.
            sent.through = through
            self.state.save()
        try:
            self._records(name, wanted, starts)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            if self._vanished(sent):
                LOG.warning("%s was deleted from MLflow; it is made again", name)
                if name == "run" or name.startswith("node-"):
                    self.state.streams.clear()  # children point at their parent: they are made again with it
                self.state.streams[name] = Sent()
                self.state.save()
                return
            if len(wanted) > 1:
                for one in wanted:
                    self._send(name, [(sent.offset, one)], [])
            else:
                LOG.warning("%s: MLflow refuses %s: %s", name, wanted, error)
        sent.offset = max(sent.offset, batch[-1][0])
        self.state.save()

    def _records(self, name: str, records: Sequence[Record], starts: list[tuple[int, Record]]) -> None:
        if not records:
            return
        run_id = self._run_id(name, starts)
        points = [
            Metric(metric_name(key), value, record["time"], record["step"])
            for record in records
            if "metrics" in record
            for key, value in record["metrics"].items()
        ]
        for at in range(0, len(points), METRICS):
            self.client.log_batch(run_id, metrics=points[at : at + METRICS])
        for record in records:
            for kind in ("open", "tags", "node", "artifact", "dataset", "model", "end"):
                if kind in record:
                    getattr(self, f"_{kind}")(name, run_id, record)

    def _run_id(self, name: str, starts: list[tuple[int, Record]]) -> str:
        """The MLflow run of a stream: the known one, for the parent the one with its tag, else a new one."""
        sent = self.state.sent("run" if name.startswith("node-") else name)
        if not sent.run_id:
            identity = f"{self.identity}/{name}"
            found = self.client.search_runs(
                [self.experiment], f"tags.`{IDENTITY}` = '{identity}'", ViewType.ACTIVE_ONLY, 100, ["start_time ASC"]
            )
            # What a child holds is unknown when the state was lost; a parent's points are never replaced.
            kept, surplus = (found[:1], found[1:]) if name == "run" else ([], found)
            for run in surplus:
                self.client.delete_run(run.info.run_id)
            sent.run_id = kept[0].info.run_id if kept else self._create(name, identity, starts)
            self.state.save()
        return sent.run_id

    def _create(self, name: str, identity: str, starts: list[tuple[int, Record]]) -> str:
        began = starts[0][1]["time"] if starts else int(time.time() * 1000)
        title = starts[0][1]["open"]["name"] if starts else name
        tags = {IDENTITY: identity, "onediff.kind": name.split("-")[0], "onediff.run": str(self.run)}
        if name != "run":
            tags[PARENT] = self._run_id("run", [])
        elif self.config.sweep:
            tags[PARENT] = self._sweep_id(self.config.sweep)
        return str(self.client.create_run(self.experiment, began, tags, title).info.run_id)

    def _sweep_id(self, sweep: str) -> str:
        """The MLflow run above the runs of a sweep, made where there is none; of two made at once, the earlier."""

        def known() -> list[str]:
            order = ["start_time ASC", "run_id ASC"]
            found = self.client.search_runs(
                [self.experiment], f"tags.`{SWEEP}` = '{sweep}'", ViewType.ACTIVE_ONLY, 10, order
            )
            return [run.info.run_id for run in found]

        if not known():
            made = self.client.create_run(self.experiment, None, {SWEEP: sweep, "onediff.kind": "sweep"}, sweep)
            self.client.update_run(made.info.run_id, status="FINISHED")
            if known()[0] != made.info.run_id:
                self.client.delete_run(made.info.run_id)
        return known()[0]

    def _replace(self, name: str) -> None:
        sent = self.state.sent(name)
        LOG.info("%s goes on from below step %d, which was sent: its MLflow run is replaced", name, sent.through)
        if sent.run_id and not self._vanished(sent):
            self.client.delete_run(sent.run_id)
        self.state.streams[name] = Sent()
        self.state.save()

    def _vanished(self, sent: Sent) -> bool:
        try:
            return bool(self.client.get_run(sent.run_id).info.lifecycle_stage == "deleted")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return True
            raise

    def _open(self, name: str, run_id: str, record: Record) -> None:
        opening = record["open"]
        starts = [start for _, start in self.starts[name]]
        number = next(i for i, start in enumerate(starts) if start["time"] == record["time"])
        step, sent = opening["step"], self.state.sent(name)
        tags = dict(opening["tags"])
        if number and step >= 0:
            again = [start for start in starts[1 : number + 1] if not start["open"].get("rollback")]
            when = [stamp(s["time"]) + ("" if name == "run" else f" from step {s['open']['step']}") for s in again]
            if again:
                tags |= {"restarts": str(len(again)), "restarted": "; ".join(when)}
            later = [start["open"]["step"] for start in starts[number + 1 :]]
            if name != "run" and step not in sent.marked and not any(other < step for other in later):
                what = "rollback" if opening.get("rollback") else "restart"
                self.client.log_batch(run_id, metrics=[Metric(what, 1.0, record["time"], step)])
                sent.marked.append(step)
        if opening["params"]:
            tags |= self._params(run_id, opening["params"])
        self._tags(name, run_id, {"tags": tags})
        self.client.update_run(run_id, status="RUNNING")

    def _params(self, run_id: str, params: dict[str, str]) -> dict[str, str]:
        """Logs parameters; MLflow's never change, so those that a restart changed come back as tags."""
        known = self.client.get_run(run_id).data.params
        cut = {metric_name(key): text[:PARAM_TEXT] for key, text in params.items()}
        new = [Param(key, text) for key, text in cut.items() if key not in known]
        for at in range(0, len(new), PARAMS):
            self.client.log_batch(run_id, params=new[at : at + PARAMS])
        return {f"changed.{key}": f"{known[key]} → {text}" for key, text in cut.items() if known.get(key, text) != text}

    def _tags(self, name: str, run_id: str, record: Record) -> None:
        tags = [RunTag(metric_name(key), text[:TAG_TEXT]) for key, text in record["tags"].items()]
        for at in range(0, len(tags), PARAMS):
            self.client.log_batch(run_id, tags=tags[at : at + PARAMS])

    def _node(self, name: str, run_id: str, record: Record) -> None:
        nodes = sorted(path.stem.removeprefix("node-") for path in journals(self.run) if path.stem.startswith("node-"))
        self._tags(name, run_id, {"tags": {"nodes": ",".join(nodes), f"node.{record['node']}": record["what"]}})

    def _artifact(self, name: str, run_id: str, record: Record) -> None:
        path, to = self.run / record["artifact"], record.get("to") or None
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), to)
        elif path.exists():
            self.client.log_artifact(run_id, str(path), to)
        else:
            LOG.warning("%s: artifact %s is gone", name, path)
        if record.get("table"):
            tables = json.loads(self.client.get_run(run_id).data.tags.get(TABLES, "[]"))
            entry = {"path": f"{to}/table.json", "type": "table"}
            tables = [*(one for one in tables if one != entry), entry]
            while len(json.dumps(tables)) > TAG_TEXT:
                tables.pop(0)
            self.client.set_tag(run_id, TABLES, json.dumps(tables))

    def _dataset(self, name: str, run_id: str, record: Record) -> None:
        what = record["dataset"]
        source = json.dumps({"uri": what["source"]})
        profile = json.dumps({"samples": what["samples"]})
        dataset = Dataset(what["name"], what["digest"], "local", source, profile=profile)
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", what["context"])])])

    def _model(self, name: str, run_id: str, record: Record) -> None:
        from onediff.tracking.registry import register

        folder = Path(record["model"])
        if not folder.is_dir() or trained_as(folder) != record["trained"]:
            LOG.warning("%s: %s holds another model by now and is not registered", name, folder)
            return
        register(self.client, run_id, folder, record)

    def _end(self, name: str, run_id: str, record: Record) -> None:
        self.client.set_terminated(run_id, record["end"], record["time"])


def superseded(offset: int, record: Record, starts: list[tuple[int, Record]]) -> bool:
    """Whether a later restart took the stream up from below this record's step."""
    step = record.get("step")
    return step is not None and any(at > offset and start["open"]["step"] < step for at, start in starts)


def metric_name(key: str) -> str:
    """`key` with what MLflow does not allow in names replaced by `_`."""
    return NOT_A_NAME.sub("_", key)[:250]


def stamp(milliseconds: int) -> str:
    """A time for people, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(milliseconds / 1000))


def one_try(seconds: float) -> None:
    """Makes MLflow give up a request after `seconds`: its own tries would sit in one call for minutes."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(seconds)))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"


@contextmanager
def ready_store(uri: str) -> Iterator[None]:
    """Makes an embedded store where there is none, whole or not at all, and keeps two runs from doing so at once.

    MLflow builds its tables in dozens of steps; a process killed in between would leave a file that never works again.
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
        yield
