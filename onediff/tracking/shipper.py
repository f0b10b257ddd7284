"""Sends journals to MLflow. Everything is safe to send twice, so a lost answer or a killed sender costs nothing.

MLflow keeps every point it was ever given. A stream that resumes from before its last sent step therefore gets a new
MLflow run, filled from the journal, and the old one is deleted (`mlflow gc` frees its space).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from onediff.config.tracking import TrackingConfig
from onediff.tracking.carrier import Carrier, gone, parcel_of
from onediff.tracking.comparison import Results, decisive
from onediff.tracking.identity import ADOPTED
from onediff.tracking.journal import Record, entries, openings, read
from onediff.tracking.logged import METRICS, log_points
from onediff.tracking.names import PARAM_TEXT, TAG_TEXT, beneath, valid_name, valid_text
from onediff.tracking.place import tracking_uri
from onediff.tracking.refusal import reason, refused, too_large
from onediff.tracking.scrub import scrubbed
from onediff.tracking.state import Sent, State, journals
from onediff.tracking.store import experiment_of, ready_store

LOG = logging.getLogger(__name__)
IDENTITY = "onediff.stream"
SWEEP = "onediff.sweep"
PARENT = "mlflow.parentRunId"
PARAMS = 100  # MLflow's limit for one request
NODES = "nodes"
"""The child that holds the system metrics of all nodes, which would clutter the run's results."""
RESULTS_SECONDS = 300.0
"""Seconds between two copies of a phase's newest results to its parent; the last copy is made when the phase ends."""


def home(stream: str) -> str:
    """The stream whose MLflow run holds the records of `stream`."""
    return NODES if stream.startswith("node-") else stream


class Shipper:
    """Sends new records of one run folder's journals to one MLflow store; `say` tells people what is left out."""

    def __init__(self, run: Path, uri: str | None = None, say: Callable[[str], None] = LOG.warning) -> None:
        self.run = run
        self.say = say
        known = json.loads((run / "tracking" / "run.json").read_text())
        self.identity: str = known["id"]
        self.lineage: dict[str, str] = known.get("lineage", {})
        self.copied: int = known.get("copied", 0)
        self.adopted: str = known.get(ADOPTED, "")
        """Id of an existing MLflow run that becomes this run's own."""
        self.config = TrackingConfig(**known["config"])
        self.uri = uri or tracking_uri(run, self.config)
        self.state = State.load(run)
        where = scrubbed(f"{self.uri} {self.config.experiment}")
        if self.state.where != where:
            self.state = State(run, where)
        self.starts: dict[str, list[tuple[int, Record]]] = {}
        self.looked: dict[str, int] = {}
        self.results: dict[str, Results] = {}
        self.copied_results: dict[str, float] = {}
        """When the results of a stream were last copied to its parent, by `time.monotonic`."""
        self.experiment = ""
        self.shipped = 0
        """Records sent so far, or set apart as parcels."""

    def connect(self) -> None:
        """Connects to the store and finds or creates the experiment. Raises whatever MLflow raises."""
        with ready_store(self.uri):
            self.client = MlflowClient(self.uri, self.uri)
            if self.adopted and not gone(self.client, self.adopted):
                self.experiment = self.client.get_run(self.adopted).info.experiment_id
            else:
                self.experiment = experiment_of(self.client, self.uri, self.config.experiment, self.run)
        self.carrier = Carrier(self.client, self.experiment, self.state, self.say)

    def ship(self) -> None:
        """Sends the points that are in the journals now, tags and parameters; notes the parcels.

        A stream that fails does not keep the others from being sent. Raises what MLflow raises.
        """
        if not self.experiment:
            self.connect()
        while self.carrier.lost:
            self._forget(self.carrier.lost.pop())
        failed = None
        for path in journals(self.run):
            try:
                self._ship_stream(path)
            except Exception as error:  # a store, a proxy or a network may answer anything
                if self._orphaned(error):
                    self._forget("run")
                    self.ship()
                    return
                if failed is not None:  # not the fault of one stream
                    break
                failed = error
        if failed is not None:
            raise failed

    def carry(self, now: bool = False) -> int:
        """Sends the parcels that are due, or all of them; returns how many arrived. Call after `ship`."""
        return self.carrier.carry(now) if self.experiment else 0

    def end_as(self, status: str) -> None:
        """Ends every MLflow run whose stream has not ended because the process that wrote it is gone."""
        for name, sent in self.state.streams.items():
            if name.startswith("node-") or not sent.run_id:
                continue
            if name.startswith("phase-"):
                self._copy_results(name)
            if self.client.get_run(sent.run_id).info.status == "RUNNING":
                self.client.set_terminated(sent.run_id, status)

    def _ship_stream(self, path: Path) -> None:
        name = path.stem
        sent = self.state.sent(name)
        size = path.stat().st_size  # read first: a later start is left for the next call
        starts = self._starts_of(path)
        if name.startswith("node-") and sent.run_id != (nodes := self.state.sent(NODES).run_id):
            sent.run_id, sent.offset, sent.through = nodes, 0, -1
        if any(at > sent.offset and start["open"]["step"] < sent.through for at, start in starts):
            self._replace(name)
            sent = self.state.sent(name)
        while sent.offset < size:
            batch: list[tuple[int, Record]] = []
            metrics, place = 0, sent.offset
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
            if not self._set_apart(name, place, batch, starts):
                self._send(name, batch, starts)
            sent = self.state.sent(name)
            self.shipped += len(batch)
        if name.startswith("phase-") and time.monotonic() - self.copied_results.get(name, -1e9) > RESULTS_SECONDS:
            self._copy_results(name)

    def _set_apart(
        self, name: str, place: int, batch: list[tuple[int, Record]], starts: list[tuple[int, Record]]
    ) -> bool:
        """Notes a parcel for the carrier, if the record of `batch` at `place` in the journal is one."""
        offset, record = batch[0]
        parcel = parcel_of(record)
        if parcel is None:
            return False
        self._run_id(name, starts)
        sent = self.state.sent(name)
        with self.state.lock:
            before = "model" in record and record["time"] < self.copied  # the original run's version, not a new one
            if "checkpoints" in record:  # lists all that are kept, so only the newest counts
                sent.parcels = {at: one for at, one in sent.parcels.items() if one.what != parcel.what}
            if not before and not superseded(offset, record, starts):
                sent.parcels[str(place)] = parcel
            sent.offset = offset
        self.state.save()
        return True

    def _starts_of(self, path: Path) -> list[tuple[int, Record]]:
        """The starts of a stream, searched only after what was found or sent before."""
        name, seen = path.stem, self.looked.get(path.stem, 0)
        found = openings(path, seen)
        self.starts.setdefault(name, []).extend(found)
        # Everything before the sent offset was searched when it was sent, or just now.
        self.looked[name] = max(found[-1][0] if found else seen, self.state.sent(name).offset)
        return self.starts[name]

    def _send(self, name: str, batch: list[tuple[int, Record]], starts: list[tuple[int, Record]]) -> None:
        """Sends records of one stream and notes the progress; a record that the store permanently rejects is left out."""
        sent = self.state.sent(name)
        wanted = [record for offset, record in batch if not superseded(offset, record, starts)]
        through = max([sent.through, *(record["step"] for record in wanted if "step" in record)])
        if through > sent.through and not name.startswith("node-"):
            # Noted before sending: if this process is killed in between, a restart still knows what may have arrived.
            sent.through = through
            self.state.save()
        try:
            self._records(name, wanted, starts)
        except MlflowException as error:
            if not refused(error) and not too_large(error):
                raise
            if refused(error) and self._vanished(sent):
                self._forget(name)
                return
            if self._orphaned(error):
                raise
            parts = wanted if len(wanted) > 1 else entries(wanted[0])
            if len(parts) > 1:
                for half in (parts[: len(parts) // 2], parts[len(parts) // 2 :]):
                    self._send(name, [(0, part) for part in half], [])
            elif refused(error):
                self.say(f"MLflow refuses a record of {name}, which is left out: {wanted[0]}: {reason(error)}")
            else:
                raise
        sent.offset = max(sent.offset, batch[-1][0])
        self.state.save()

    def _forget(self, name: str) -> None:
        """Starts over a stream whose MLflow run was deleted."""
        LOG.warning("%s was deleted from MLflow; it is created again", name)
        with self.state.lock:
            if name == "run":
                self.state.streams.clear()  # children point to their parent, so they are created again with it
            if home(name) == NODES:
                self.state.streams.pop(NODES, None)
            self.state.streams[name] = Sent()
        self.state.save()

    def _records(self, name: str, records: Sequence[Record], starts: list[tuple[int, Record]]) -> None:
        if not records:
            return
        run_id = self._run_id(name, starts)
        points = [
            Metric(valid_name(key), value, record["time"], record["step"])
            for record in records
            if "metrics" in record
            for key, value in record["metrics"].items()
        ]
        log_points(self.client, run_id, points)
        for record in records:
            for kind in ("open", "tags", "node", "end"):
                if kind in record:
                    getattr(self, f"_{kind}")(name, run_id, record)

    def _run_id(self, name: str, starts: list[tuple[int, Record]]) -> str:
        """The MLflow run of a stream: the known one, or for the parent the one with its tag, or else a new one."""
        name = home(name)
        sent = self.state.sent(name)
        if not sent.run_id:
            identity = f"{self.identity}/{name}"
            found = self.client.search_runs(
                [self.experiment], f"tags.`{IDENTITY}` = '{identity}'", ViewType.ACTIVE_ONLY, 100, ["start_time ASC"]
            )
            # If the state is lost, the contents of a child are unknown; a parent's points are never replaced.
            kept, surplus = (found[:1], found[1:]) if name in ("run", NODES) else ([], found)
            for run in surplus:
                self.client.delete_run(run.info.run_id)
            sent.run_id = kept[0].info.run_id if kept else self._create(name, identity, starts)
            self.state.save()
        return sent.run_id

    def _create(self, name: str, identity: str, starts: list[tuple[int, Record]]) -> str:
        began = starts[0][1]["time"] if starts else int(time.time() * 1000)
        title = starts[0][1]["open"]["name"] if starts else name
        if name == "run" and self.copied:
            title = self.run.name
        tags = {IDENTITY: identity, "onediff.kind": name.split("-")[0], "onediff.run": str(self.run)}
        if name == "run":
            tags |= self.lineage
        if name != "run":
            tags[PARENT] = self._run_id("run", [])
            title = beneath(str(self.client.get_run(tags[PARENT]).info.run_name), title)
        elif self.adopted and not gone(self.client, self.adopted):
            for key, text in tags.items():
                self.client.set_tag(self.adopted, key, text)
            return self.adopted
        elif self.config.sweep:
            tags[PARENT] = self._sweep_id(self.config.sweep)
        made = str(self.client.create_run(self.experiment, began, tags, title).info.run_id)
        if name == NODES and (status := self.client.get_run(tags[PARENT]).info.status) != "RUNNING":
            self.client.set_terminated(made, status)
        return made

    def _sweep_id(self, sweep: str) -> str:
        """The parent of a sweep's runs, created if missing; the earlier one if two were created at once."""

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
        LOG.info("%s resumes before step %d, which was sent already: its MLflow run is replaced", name, sent.through)
        if sent.run_id and not self._vanished(sent):
            self.client.delete_run(sent.run_id)
        self.state.streams[name] = Sent()
        self.state.save()

    def _vanished(self, sent: Sent) -> bool:
        return bool(sent.run_id) and gone(self.client, sent.run_id)

    def _orphaned(self, error: Exception) -> bool:
        """Whether a request was refused because the parent run was deleted; a child cannot be created without it."""
        return isinstance(error, MlflowException) and refused(error) and self._vanished(self.state.sent("run"))

    def _open(self, name: str, run_id: str, record: Record) -> None:
        opening = record["open"]
        starts = [start for _, start in self.starts[name]]
        step, sent = opening["step"], self.state.sent(name)
        # Two in the same millisecond differ in their step.
        begun = [(start["time"], start["open"]["step"]) for start in starts]
        number = begun.index((record["time"], step))
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
        params = opening["params"]
        if name != "run" and self.starts.get("run"):
            whole = self.starts["run"][-1][1]["open"]
            params = decisive(name, whole["params"])
            tags |= {key: text for key, text in whole["tags"].items() if key.startswith("mlflow.")}
        if params:
            tags |= self._params(run_id, params)
        self._tags(name, run_id, {"tags": tags})
        for one in self._with_nodes(name, run_id):
            self.client.update_run(one, status="RUNNING")

    def _params(self, run_id: str, params: dict[str, str]) -> dict[str, str]:
        """Logs parameters. MLflow's never change, so those that a restart changed are returned as tags."""
        known = self.client.get_run(run_id).data.params
        cut = {valid_name(key): valid_text(text, PARAM_TEXT) for key, text in params.items()}
        new = [Param(key, text) for key, text in cut.items() if key not in known]
        for at in range(0, len(new), PARAMS):
            self.client.log_batch(run_id, params=new[at : at + PARAMS])
        return {f"changed.{key}": f"{known[key]} → {text}" for key, text in cut.items() if known.get(key, text) != text}

    def _tags(self, name: str, run_id: str, record: Record) -> None:
        tags = [RunTag(valid_name(key), valid_text(text, TAG_TEXT)) for key, text in record["tags"].items()]
        for at in range(0, len(tags), PARAMS):
            self.client.log_batch(run_id, tags=tags[at : at + PARAMS])

    def _node(self, name: str, run_id: str, record: Record) -> None:
        nodes = sorted(path.stem.removeprefix("node-") for path in journals(self.run) if path.stem.startswith("node-"))
        tags = {"nodes": ",".join(nodes), f"node.{record['node']}": record["what"]}
        self._tags(name, self._run_id("run", []), {"tags": tags})

    def _end(self, name: str, run_id: str, record: Record) -> None:
        if name != "run":
            self._copy_results(name)
        for one in self._with_nodes(name, run_id):
            self.client.set_terminated(one, record["end"], record["time"])

    def _with_nodes(self, name: str, run_id: str) -> list[str]:
        """The MLflow runs of `name`: for the parent also that of its nodes, which has the same status."""
        nodes = self.state.streams[NODES].run_id if name == "run" and NODES in self.state.streams else ""
        return [run_id, nodes] if nodes else [run_id]

    def _copy_results(self, name: str) -> None:
        """Copies the newest results of a child to its parent.

        All are at step 0, because steps of different phases are unrelated: MLflow then takes the latest in time as the
        run's own, and compares them as bars.
        """
        results = self.results.setdefault(name, Results())
        found = results.read_to(self.run / "tracking" / f"{name}.jsonl", self.state.sent(name).offset)
        points = [Metric(valid_name(key), value, at, 0) for key, (value, at) in found.items()]
        parent = self._run_id("run", [])
        log_points(self.client, parent, points)
        if points and name.startswith("evaluation-"):
            self.client.set_tag(parent, "evaluation", name.removeprefix("evaluation-"))
        if points:
            self.copied_results[name] = time.monotonic()


def superseded(offset: int, record: Record, starts: list[tuple[int, Record]]) -> bool:
    """Whether a later restart resumed the stream from before this record's step."""
    step = record.get("step")
    return step is not None and any(at > offset and start["open"]["step"] < step for at, start in starts)


def stamp(milliseconds: int) -> str:
    """A time in UTC, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(milliseconds / 1000))
