"""The identity of the run in a folder: `tracking/run.json`. A copy of a folder is another run, with its own record."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onediff.atomic import write_whole
from onediff.config.tracking import TrackingConfig
from onediff.tracking.place import here, remembered, without_secrets
from onediff.tracking.state import State

LOG = logging.getLogger(__name__)
ADOPTED = "mlflow_run_id"


def identity_file(run: Path) -> Path:
    """The file that holds a run's identity, how it is tracked, and its folder."""
    return run / "tracking" / "run.json"


def known_of(run: Path) -> dict[str, Any]:
    """The contents of `run.json`; empty if there is none."""
    path = identity_file(run)
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return known


def remember(
    run: Path, config: TrackingConfig, uri: str | None = None, lineage: Mapping[str, str] | None = None
) -> None:
    """Writes what the sender needs to know, and gives the run an identity if it has none of its own.

    From now on the run is sent to `uri`, if one is given; its secrets are not stored. `lineage` are tags that say where
    a new run comes from.
    """
    identity_file(run).parent.mkdir(parents=True, exist_ok=True)
    known = own(run, known_of(run)) or new_identity()
    place = {"folder": str(run), "inode": run.stat().st_ino}
    address = {"uri": without_secrets(uri)} if uri else {}
    origin = {"lineage": dict(lineage)} if lineage else {}
    told = config.model_dump(mode="json") | {"experiment": experiment_name(config, known)}
    _write(run, {**known, **place, **address, **origin, "config": told})


def new_identity() -> dict[str, Any]:
    """A new identity; if MLFLOW_RUN_ID is set, the run uses that MLflow run, which the starter of this job created."""
    adopted = os.environ.get("MLFLOW_RUN_ID")
    return {"id": uuid.uuid4().hex, "created": int(time.time())} | ({ADOPTED: adopted} if adopted else {})


def experiment_name(config: TrackingConfig, known: Mapping[str, Any]) -> str:
    """The experiment of a run: that of the configuration, else the one it is in, else MLFLOW_EXPERIMENT_NAME."""
    usual = str(TrackingConfig.model_fields["experiment"].default)
    if config.experiment != usual:
        return config.experiment
    return known.get("config", {}).get("experiment") or os.environ.get("MLFLOW_EXPERIMENT_NAME") or usual


def settle(run: Path) -> None:
    """Gives a copied folder an identity of its own; leaves other folders alone."""
    known = known_of(run)
    if known and (mine := own(run, known)) is not known:
        _write(run, {**mine, "folder": str(run), "inode": run.stat().st_ino})


def own(run: Path, known: dict[str, Any]) -> dict[str, Any]:
    """`known` itself if it belongs to this run, else the identity of a new run that was copied from that one."""
    if not known or not is_copy(run, known):
        return known
    LOG.warning("tracking: %s is a copy of the run %s and becomes a run of its own in MLflow", run, known["folder"])
    lineage = {"onediff.copied_from": known["folder"], **traces(run)}
    (run / "tracking" / "sent.json").unlink(missing_ok=True)
    known = {key: value for key, value in known.items() if key != ADOPTED}
    return {**known, "id": uuid.uuid4().hex, "lineage": lineage, "copied": int(time.time() * 1000)}


def is_copy(run: Path, known: Mapping[str, Any]) -> bool:
    """Whether the folder's identity belongs to another folder that still exists.

    If the first folder is not visible from here (another machine), a folder that was moved or is mounted elsewhere is
    recognised by its inode number. The store next to a folder tells nothing: another place has another store.
    """
    if "folder" not in known or known["folder"] == str(run):
        return False
    first = Path(known["folder"])
    with contextlib.suppress(OSError, ValueError):  # missing, or not visible to us
        if known_of(first).get("id") == known["id"]:
            return not first.samefile(run)
    config = TrackingConfig(**known["config"])
    elsewhere = config.uri or remembered(run) or here()
    return elsewhere is not None and run.stat().st_ino != known["inode"]


def traces(run: Path, phase: str | None = None) -> dict[str, str]:
    """Tags for a run that comes from this one: its identity, and its MLflow runs, if any."""
    state, known = State.load(run), known_of(run)
    ids = {"onediff.origin.id": known["id"]} if known else {}
    for name, stream in (("run", "run"), ("phase", f"phase-{phase}")):
        if stream in state.streams and state.streams[stream].run_id:
            ids[f"onediff.origin.mlflow_{name}_id"] = state.streams[stream].run_id
    return ids


def _write(run: Path, known: Mapping[str, Any]) -> None:
    write_whole(identity_file(run), json.dumps(known, indent=1))
