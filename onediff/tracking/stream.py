"""A stream: the records of one MLflow run, as the training process writes them. Never waits for MLflow, never raises."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec

import yaml

from onediff.tracking.journal import Journal
from onediff.tracking.scrub import scrubbed
from onediff.tracking.table import write_table

LOG = logging.getLogger(__name__)
Status = Literal["FINISHED", "FAILED", "KILLED"]
P = ParamSpec("P")


def never_raises(method: Callable[P, None]) -> Callable[P, None]:
    """Turns an error in `method` into one warning in the log, because recording must never end training."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            LOG.warning("tracking: %s failed: %s: %s", method.__name__, type(error).__name__, error)

    return guarded


class RunRecorder:
    """One MLflow run as the training process sees it. Call from one process only: global rank 0."""

    def __init__(self, run: Path, journal: Journal, files: Path) -> None:
        self.run = run
        self.journal = journal
        self.files = files
        self.ended = False

    @never_raises
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one step; costs about 15 µs. Steps must increase; a repeated step must have other metrics."""
        self.journal.append({"step": int(step), "metrics": {name: float(value) for name, value in metrics.items()}})

    @never_raises
    def tags(self, tags: Mapping[str, object]) -> None:
        """Sets tags; a later value replaces an earlier one."""
        self.journal.append({"tags": {name: scrubbed(str(value)) for name, value in tags.items()}})

    @never_raises
    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sample captions of one step as an MLflow table and an HTML page, both also kept in the run folder.

        A row is {"before": image, "after": image, "reference": text, "prediction": text, …}; an image is a `Path`,
        a `PIL.Image` or an array [height, width, 3] of uint8.
        """
        place = f"{name}/step-{step:08d}"
        folder = self.files / place
        write_table(folder, place, rows)
        self.journal.append(
            {"artifact": str(folder.relative_to(self.run)), "to": place, "step": int(step), "table": True}
        )

    @never_raises
    def artifact(self, path: str | Path, to: str = "") -> None:
        """Keeps a file or folder with the run; it must stay where it is until it is sent."""
        path = Path(path).resolve()
        inside = path.is_relative_to(self.run)
        self.journal.append({"artifact": str(path.relative_to(self.run) if inside else path), "to": to})

    @never_raises
    def text(self, name: str, text: str) -> None:
        """Keeps `text`, with secrets masked, as the artifact `name`; a later text under that name replaces it."""
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(scrubbed(text), encoding="utf-8")
        to = str(Path(name).parent)
        self.journal.append({"artifact": str(path.relative_to(self.run)), "to": "" if to == "." else to})

    @never_raises
    def dataset(self, manifest: str | Path, context: str, name: str | None = None) -> None:
        """Records a data set that the run reads, by its `manifest.json`; `context` is `training` or `evaluation`.

        `name` is the data set's name in the configuration, which names its losses too.
        """
        self.journal.append({"dataset": described(manifest, context) | ({"set": name} if name else {})})

    @never_raises
    def checkpoints(self, phase: str, steps: Sequence[int]) -> None:
        """Records which checkpoints of a phase are on disk. MLflow shows each as a model, with the metrics of its step."""
        self.journal.append({"checkpoints": [int(step) for step in steps], "phase": phase})

    @never_raises
    def scores_of(self, phase: str, step: int, manifest: str | Path | None) -> None:
        """Records whose weights the metrics of this stream judge, and on which data set."""
        data = None if manifest is None else described(manifest, "evaluation")
        self.journal.append({"scores_of": {"phase": phase, "step": int(step), "data": data}})

    @never_raises
    def model(
        self,
        folder: str | Path,
        name: str,
        aliases: Sequence[str] = (),
        score: Mapping[str, Any] | None = None,
    ) -> None:
        """Registers an exported model's folder in MLflow's model registry, as a new version with these aliases.

        The newest version is always `models:/NAME/latest`, so MLflow refuses `latest` as an alias. With `score`,
        {"metric", "value", "data"}, the alias `best` goes to the best version scored on the same data.
        """
        if "latest" in aliases:
            raise ValueError("the alias 'latest' belongs to MLflow: the newest version is models:/NAME/latest anyway")
        folder = Path(folder).resolve()
        record: dict[str, Any] = {
            "model": str(folder),
            "name": name,
            "aliases": list(aliases),
            "trained": trained_as(folder),
        }
        if score:
            record["score"] = dict(score)
        self.journal.append(record)

    @never_raises
    def went_back(self, step: int, why: str, times: int) -> None:
        """Records that the run goes back to an earlier step: later records are replaced, as after a restart."""
        tags = {"rollbacks": str(times), f"rollback.{times}": scrubbed(f"to step {step} {why}")}
        self.journal.append({"open": {"step": step, "name": "", "tags": tags, "params": {}, "rollback": True}})

    def durable(self) -> None:
        """Flushes the journal. Call at every checkpoint, so that the history up to it survives a crash of the machine."""
        self.journal.durable()

    @never_raises
    def finish(self, status: Status = "FINISHED") -> None:
        """Ends the stream; a restart can open it again."""
        if not self.ended:
            self.ended = True
            self.journal.append({"end": status})
            self.journal.close()


def described(manifest: str | Path, context: str) -> dict[str, Any]:
    """The fields that MLflow has for a data set, from its `manifest.json`."""
    path = Path(manifest).resolve()
    raw = path.read_bytes()
    known = json.loads(raw)
    return {
        "name": f"{known['name']}/{known['split']}",
        "digest": hashlib.sha256(raw).hexdigest()[:32],
        "source": scrubbed(str(path.parent)),
        "samples": known["samples"],
        "context": context,
    }


def trained_as(folder: Path) -> str:
    """Describes the run, phase and step of an exported model's weights."""
    known = yaml.safe_load((folder / "onediff.yaml").read_text(encoding="utf-8")).get("trained", {})
    return ", ".join(f"{name} {value}" for name, value in known.items())
