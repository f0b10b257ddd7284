"""A run in a PostgreSQL store, with Debian's own server (packages `postgresql` and `psycopg[binary]`)."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import free_port

from onediff.cli import main
from onediff.config.tracking import TrackingConfig
from onediff.tracking.tracker import Tracker

pytestmark = pytest.mark.long

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PASSWORD = "not-to-be-kept"


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of a database on a free port of loopback; PostgreSQL refuses to run as root."""
    pytest.importorskip("psycopg")
    if not PROGRAMS:
        pytest.skip("no PostgreSQL here; Debian's package is `postgresql`")
    as_user: dict[str, object] = {"user": "nobody"} if os.geteuid() == 0 else {}
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True, **as_user).strip())
    (password := folder / "password").write_text(PASSWORD)
    if as_user:
        os.chown(password, pwd.getpwnam("nobody").pw_uid, -1)
    port, program = free_port(), PROGRAMS[-1]

    def postgres(name: str, *words: str) -> list[str]:
        return [str(program / name), "-D", str(folder / "data"), *words]

    quiet = {"stdout": subprocess.DEVNULL, "check": True, "timeout": 300, "cwd": folder, **as_user}
    made = ["-U", "tracker", "--pwfile", str(password), "-A", "scram-sha-256", "--no-sync"]
    subprocess.run(postgres("initdb", *made), **quiet)
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
    subprocess.run(postgres("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start"), **quiet)
    try:
        yield f"postgresql://tracker:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(postgres("pg_ctl", "-m", "immediate", "stop"), **quiet)
        shutil.rmtree(folder)


def test_two_runs_into_a_new_database_at_once_and_a_restart(database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(tmp_path)
    config = TrackingConfig(experiment="in postgres", finish_seconds=240)
    manifest = tmp_path / "manifest.json"
    manifest.write_text('{"name": "scenes", "split": "train", "samples": 3}')
    trackers = [Tracker.open(tmp_path / "runs" / name, config, params={"lr": 0.1}) for name in ("a", "b")]
    for tracker in trackers:
        tracker.dataset(manifest, "training")
        phase = tracker.phase("one")
        for step in range(1, 301):
            phase.log(step, {"loss": 1 / step, "lr": 0.1})
        phase.checkpoints("one", [200, 300])
        tracker.text("notes.txt", "so far")
    for tracker in trackers:
        tracker.finish()
        assert tracker.unsent == ""
    # Resumed from before what was sent: the child is replaced, and every step is there once.
    again = Tracker.open(tmp_path / "runs" / "a", config, params={"lr": 0.2})
    phase = again.phase("one", resumed_step=200)
    for step in range(201, 321):
        phase.log(step, {"loss": 2 / step, "lr": 0.2})
    phase.checkpoints("one", [200, 320])
    again.finish()
    assert again.unsent == ""
    client = MlflowClient(database)
    found = client.search_runs([client.get_experiment_by_name("in postgres").experiment_id])
    names = sorted(run.info.run_name for run in found)
    assert names == ["a", "a / one", "b", "b / one"]
    (parent,) = (run for run in found if run.info.run_name == "a")
    assert parent.data.tags["changed.lr"] == "0.1 → 0.2"
    (child,) = (run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id)
    points = [(point.step, point.value) for point in client.get_metric_history(child.info.run_id, "loss")]
    assert points == [(step, (1 if step <= 200 else 2) / step) for step in range(1, 321)]
    models = client.search_logged_models([parent.info.experiment_id], f"source_run_id = '{parent.info.run_id}'")
    losses = {model.name: {(one.step, one.value) for one in model.metrics} for model in models}
    assert losses == {"one-200": {(200, 1 / 200)}, "one-320": {(320, 2 / 320)}}
    # Artifacts lie beside the runs, not in the working directory; the password is kept nowhere.
    artifact = client.download_artifacts(parent.info.run_id, "notes.txt", str(tmp_path))
    assert Path(artifact).read_text() == "so far" and not (tmp_path / "mlruns").exists()
    kept = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and PASSWORD in path.read_text("latin-1")]
    assert kept == []
    # A shell without the password is told; with it, nothing is left to send.
    assert main(["track", "sync", str(tmp_path / "runs" / "a")]) == 0
