"""The record of a run on rank 0: the journals of the run, its phases and evaluations, and the sender."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onediff.config.difference import flat
from onediff.config.tracking import TrackingConfig
from onediff.tracking.identity import remember
from onediff.tracking.journal import Journal, openings, records
from onediff.tracking.place import here, remembered
from onediff.tracking.provenance import start_tags, uncommitted
from onediff.tracking.scrub import scrubbed, scrubbed_tree
from onediff.tracking.stream import RunRecorder, Status, never_raises

LOG = logging.getLogger(__name__)
FOLDER = "tracking"
KEPT_OVER_RESTARTS = {"slurm.job_id": "slurm.job_ids", "host": "hosts"}


class Tracker(RunRecorder):
    """The MLflow run of a whole run (the parent), which creates its children. One per run, on global rank 0.

    Everything is appended to journals in `<run>/tracking/`; another process sends them to MLflow.
    """

    def __init__(self, run: Path, config: TrackingConfig, journal: Journal) -> None:
        super().__init__(run, journal, run / FOLDER / "files")
        self.config = config
        self.children: list[RunRecorder] = []
        self.unsent = ""
        """After `finish`: describes what could not be sent."""
        self.sender = start_sender(run) if config.live else None

    @classmethod
    def open(
        cls,
        run_dir: str | os.PathLike[str],
        config: TrackingConfig,
        *,
        run_name: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> Tracker:
        """Starts the record of a run, or continues the one in the folder. Returns at once.

        `params` is the resolved configuration as a nested mapping, `tags` describe this start. Commit, packages, host
        and Slurm job are added, with secrets masked. Raises OSError if the folder cannot be written.
        """
        run = Path(run_dir).resolve()
        remember(run, config, here())
        path = run / FOLDER / "run.jsonl"
        now = {**start_tags(), **{name: scrubbed(str(value)) for name, value in (tags or {}).items()}}
        now |= kept_over_restarts(path, now)
        journal = Journal(path, config.queue_records)
        opening = {"step": 0, "name": run_name or run.name, "tags": now, "params": as_texts(params or {})}
        journal.append({"open": opening, "pid": os.getpid(), "host": socket.gethostname()})
        tracker = cls(run, config, journal)
        if params:
            tracker.text("config.json", json.dumps(scrubbed_tree(dict(params)), indent=2, default=str))
        if difference := uncommitted(config.diff_bytes):
            tracker.text("uncommitted.diff", difference)
        return tracker

    @classmethod
    def attach(cls, run_dir: str | os.PathLike[str], config: TrackingConfig) -> Tracker:
        """Adds an evaluation or an export to the record of a run that is not being trained. Records no restart."""
        run = Path(run_dir).resolve()
        remember(run, config, remembered(run) or here())
        path = run / FOLDER / "run.jsonl"
        new = not openings(path)
        journal = Journal(path, config.queue_records)
        if new:
            journal.append({"open": {"step": 0, "name": run.name, "tags": start_tags(), "params": {}}})
            journal.append({"end": "FINISHED"})
        elif kept := kept_over_restarts(path, start_tags()):
            journal.append({"tags": kept})
        return cls(run, config, journal)

    def phase(self, name: str, resumed_step: int = 0, tags: Mapping[str, object] | None = None) -> RunRecorder:
        """The child run of a phase, found again after a restart; what it logged after `resumed_step` is replaced."""
        return self._child(f"phase-{name}", name, resumed_step, tags)

    def evaluation(self, name: str, tags: Mapping[str, object] | None = None) -> RunRecorder:
        """The child run of an evaluation; an earlier one of the same name is replaced."""
        return self._child(f"evaluation-{name}", f"evaluation {name}", -1, {**start_tags(), **(tags or {})})

    def _child(self, stream: str, name: str, step: int, tags: Mapping[str, object] | None) -> RunRecorder:
        journal = Journal(self.run / FOLDER / f"{stream}.jsonl", self.config.queue_records)
        plain = {key: scrubbed(str(value)) for key, value in (tags or {}).items()}
        job = {key: value for key, value in start_tags().items() if key in KEPT_OVER_RESTARTS}
        plain |= job | kept_over_restarts(journal.path, job)
        journal.append({"open": {"step": step, "name": name, "tags": plain, "params": {}}})
        child = RunRecorder(self.run, journal, self.run / stream)
        self.children.append(child)
        return child

    @never_raises
    def finish(self, status: Status | None = "FINISHED") -> None:
        """Ends the run and those of its children that have not ended, and waits a bounded time for MLflow.

        With `None`, as after `attach`, the run keeps its status. One log line says what could not be sent.
        """
        if self.ended:
            return
        self.ended = True
        for child in self.children:
            child.finish(status or "FINISHED")
        if status is not None:
            self.journal.append({"end": status})
        self.journal.close()
        if self.sender is not None:
            self.unsent = stop_sender(self.run, self.sender, self.config)
        if self.unsent:
            rest = f"'onediff track sync {self.run}' sends the rest"
            LOG.warning("tracking: not sent to MLflow: %s; %s", self.unsent, rest)


def kept_over_restarts(path: Path, now: Mapping[str, str]) -> dict[str, str]:
    """Tags that list the values of all starts of a stream: those in its journal, then those of this start (`now`)."""
    found: dict[str, str] = {}
    told = [record.get("open", record).get("tags", {}) for _, record in records(path) if "metrics" not in record]
    for one, all_of_them in KEPT_OVER_RESTARTS.items():
        seen = [item for tags in [*told, now] for item in tags.get(all_of_them, tags.get(one, "")).split(",") if item]
        if seen:
            found[all_of_them] = ",".join(dict.fromkeys(seen))
    return found


def as_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """The parameters as MLflow takes them: `a.b.c` → text, without secrets."""
    values = flat(scrubbed_tree(dict(params)))
    return {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in values.items()}


def start_sender(run: Path) -> subprocess.Popen[bytes]:
    """The process that sends the journals of `run`; it ends when this process does."""
    words = [sys.executable, "-m", "onediff.tracking.sender", str(run), str(os.getpid())]
    # It needs no accelerator and few cores, and must not inherit the variables of this rank.
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    # It runs the code of this process, not what the working directory holds.
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    code = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(words, stdin=subprocess.PIPE, env={**os.environ, **hidden, **code}, start_new_session=True)


def stop_sender(run: Path, sender: subprocess.Popen[bytes], config: TrackingConfig) -> str:
    """Lets the sender empty the journals for a bounded time, then ends it. Describes what is unsent, or returns ''.

    Uploads of files and models get more time than the rest.
    """
    from onediff.tracking.state import State

    assert sender.stdin is not None
    try:
        sender.stdin.write(b"finish\n")
        sender.stdin.close()
        sender.wait(config.finish_seconds)
    except BrokenPipeError:
        pass  # it has ended
    except subprocess.TimeoutExpired:
        end = time.monotonic() + config.upload_seconds - config.finish_seconds
        told = False
        while sender.poll() is None and time.monotonic() < end and State.load(run).on_its_way():
            if not told:
                LOG.info(
                    "tracking: sending %s to MLflow for at most %.0f s more",
                    State.load(run).unsent(),
                    end - time.monotonic(),
                )
            told = True
            time.sleep(0.5)
    if sender.poll() is None:
        sender.kill()
    sender.wait()
    return State.load(run).unsent()
