"""Summarises a run from its folder, without MLflow, for `onediff runs` and `onediff runs diff`."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from onediff.config.difference import Differences, flat
from onediff.config.difference import differences as changed
from onediff.errors import UserError
from onediff.tracking.journal import Record, last, openings, read, records
from onediff.tracking.state import journals

SILENT_SECONDS = 600
Tree = Mapping[str, Any]


@dataclass
class Overview:
    """One run in one line."""

    name: str
    state: str
    """running, finished, stopped, failed, killed; `died` if its process is gone, `silent` if it writes nothing."""
    phase: str = ""
    step: int = 0
    steps: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """The newest step's metrics."""
    scores: dict[str, float] = field(default_factory=dict)
    """The newest evaluation's metrics."""
    jobs: str = ""
    updated: float = 0.0
    """Seconds since the epoch."""


def run_folders(place: Path) -> list[Path]:
    """The run in `place`, or all runs inside it. Raises UserError if there is none."""
    if is_run(place):
        return [place]
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; name the folder that holds the runs")
    found = sorted(path for path in place.iterdir() if is_run(path))
    if not found:
        raise UserError(f"{place}: holds no runs; name the folder that holds them, or the folder of one run")
    return found


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return (path / "tracking" / "run.json").is_file() or (path / "status.json").is_file()


def overview(run: Path) -> Overview:
    """The line of one run, from its status, its journals and its scores."""
    status = read_json(run / "status.json")
    starts = [start for _, start in openings(run / "tracking" / "run.jsonl")]
    made = Overview(run.name, str(status.get("state", "")), str(status.get("phase") or ""))
    made.step, made.steps = int(status.get("step") or 0), status.get("steps_total")
    made.metrics = {key: status[key] for key in ("loss", "tokens_per_second") if status.get(key) is not None}
    made.updated = float(status.get("updated", 0))
    newest: Record = {"time": 0}
    evaluated_at = 0
    for path in journals(run):
        record = last(path, "metrics")
        if record is None:
            continue
        made.updated = max(made.updated, record["time"] / 1000)
        if path.stem.startswith("phase-") and record["time"] > newest["time"]:
            newest = record
            steps = made.steps if path.stem == f"phase-{made.phase}" else None
            made.phase, made.step, made.steps = path.stem.removeprefix("phase-"), record["step"], steps
            made.metrics = of_step(path, record["step"])
        elif path.stem.startswith("evaluation-") and record["time"] >= evaluated_at:
            evaluated_at, made.scores = record["time"], record["metrics"]
    made.scores = made.scores or numbers(read_json(run / "evaluation" / "scores.json"))
    if starts:
        tags = starts[-1]["open"]["tags"]
        made.jobs = tags.get("slurm.job_ids", tags.get("slurm.job_id", ""))
        made.state = made.state or ended_as(run / "tracking" / "run.jsonl")
        if made.state == "running":
            made.state = alive(starts[-1], made.updated)
    return made


def of_step(path: Path, step: int, window: int = 1 << 16) -> dict[str, float]:
    """All metrics of a step near the end of a journal, because training and validation losses are separate records."""
    start = max(0, path.stat().st_size - window)
    found: dict[str, float] = {}
    for _, record in read(path, start):
        if record.get("step") == step and "metrics" in record:
            found |= record["metrics"]
    return found


def ended_as(path: Path) -> str:
    """The state according to the last lines of the run's journal."""
    *_, (_, newest) = (pair for pair in records(path) if "open" in pair[1] or "end" in pair[1])
    return str(newest.get("end", "running")).lower()


def alive(start: Record, updated: float) -> str:
    """Whether a run that is marked as running can still be running."""
    if start.get("host") == socket.gethostname():
        try:
            os.kill(start["pid"], 0)
        except ProcessLookupError:
            return "died"
        except PermissionError:
            return "running"
    return "silent" if time.time() - updated > SILENT_SECONDS else "running"


def differences(one: Path, other: Path) -> dict[str, Differences]:
    """The differences between two runs: heading → key → (value of `one`, value of `other`)."""
    return {
        "results": changed(results(one), results(other)),
        "configuration": changed(settings(one), settings(other)),
        "data": changed(data(one), data(other)),
        "code": changed(code(one), code(other)),
    }


def earlier_settings(run: Path) -> dict[str, Differences]:
    """The settings files of a run's starts, oldest first, and what changed after each: (before, after)."""
    files = sorted(run.glob("config.before-*.yaml"), key=lambda path: int(path.stem.rpartition("-")[2]))
    found = [settings(run, file.name) for file in files] + [settings(run)]
    return {file.name: changed(*pair) for file, pair in zip(files, pairwise(found), strict=True)}


def settings(run: Path, file: str = "config.yaml") -> dict[str, Any]:
    """The resolved configuration, flat. Raises UserError if it cannot be read."""
    path = run / file
    if path.is_file():
        try:
            return flat(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable as a configuration: {error}") from None
    starts = openings(run / "tracking" / "run.jsonl")
    return dict(starts[-1][1]["open"]["params"]) if starts else {}


def data(run: Path) -> dict[str, str]:
    """Each recorded data set, with the digest of its manifest and its size."""
    found = {}
    for _, record in records(run / "tracking" / "run.jsonl"):
        if "dataset" in record:
            one = record["dataset"]
            found[f"{one['name']} ({one['context']})"] = f"{one['digest'][:12]}, {one['samples']} samples"
    return found


def code(run: Path) -> dict[str, str]:
    """Commit, packages, command and machine of the last start."""
    starts = openings(run / "tracking" / "run.jsonl")
    tags = dict(starts[-1][1]["open"]["tags"]) if starts else {}
    changed = run / "tracking" / "files" / "uncommitted.diff"
    if tags.get("git.dirty") == "yes" and changed.is_file():
        tags["uncommitted lines"] = str(len(changed.read_text(errors="replace").splitlines()))
    return tags


def results(run: Path) -> dict[str, Any]:
    """The newest metrics of every phase, and of the newest evaluation of each data set and split with its weights."""
    found: dict[str, Any] = {}
    newest: dict[str, int] = {}
    for path in journals(run):
        kind, _, name = path.stem.partition("-")
        record = last(path, "metrics") if kind in ("phase", "evaluation") else None
        if record is None:
            continue
        if kind == "phase":
            title, about = name, {"step": record["step"]}
        else:
            where, weights = evaluated(name, run)
            title, about = f"evaluation {where}", {"weights": weights} if weights else {}
            if newest.setdefault(title, record["time"]) > record["time"]:
                continue
            newest[title] = record["time"]
        found |= {f"{title}: {key}": value for key, value in {**about, **record["metrics"]}.items()}
    scores = numbers(read_json(run / "evaluation" / "scores.json").get("scores") or {})
    return found | {f"evaluation: {key}": value for key, value in scores.items()}


def evaluated(name: str, run: Path) -> tuple[str, str]:
    """Splits `pairs-test-two-600` into data set with split, and phase with step; the latter is empty for other names."""
    phases = (path.stem.removeprefix("phase-") for path in journals(run) if path.stem.startswith("phase-"))
    for phase in sorted(phases, key=len, reverse=True):
        if found := re.fullmatch(rf"(.+)-{re.escape(phase)}-(\d+)", name):
            return found[1], f"{phase} {found[2]}"
    return name, ""


def numbers(values: Tree) -> dict[str, float]:
    """The numbers of a nested mapping, flattened."""
    return {key: value for key, value in flat(values).items() if isinstance(value, (int, float))}


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty if the file is missing or incomplete."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
