"""Artifacts, data sets and models beside the points, on a real MLflow server behind a proxy that takes some of them not."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from onediff.cli import main, track
from onediff.config.tracking import TrackingConfig
from onediff.tracking.registry import PACKAGE
from onediff.tracking.state import State
from onediff.tracking.tracker import Tracker


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """What is registered is a folder of files and the words of whom it was trained by."""
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "onediff.yaml").write_text(yaml.safe_dump({"trained": {"run": "a", "step": 7}}))
    (folder / "weights.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "manifest.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"name": "scenes", "split": "train", "samples": 3}))
    return path


def runs(url: str, experiment: str) -> dict:
    client = MlflowClient(url, url)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {run.info.run_name.rpartition(" / ")[2]: run for run in found}


def losses(url: str, run) -> list[tuple[int, float]]:
    points = MlflowClient(url, url).get_metric_history(run.info.run_id, "loss")
    return [(point.step, point.value) for point in points]


def test_what_the_server_refuses_holds_no_metric_up_and_follows_once(
    server, proxy, tmp_path, exported, manifest, capfd, monkeypatch
):
    """A proxy without the way to artifacts, an older server: points and status arrive; later the rest does, a model once."""
    monkeypatch.setattr(track, "TRIES", 1)
    client, run = MlflowClient(server.url, server.url), tmp_path / "run"
    config = TrackingConfig(uri=proxy.url, experiment="apart", flush_seconds=0.1, finish_seconds=20)
    proxy.refuse = {"mlflow-artifacts": 413, "logged-models": 404, "log-inputs": 403}
    tracker = Tracker.open(run, config, params={"lr": 0.1})
    tracker.dataset(manifest, "training")
    phase = tracker.phase("one")
    for step in range(1, 101):
        phase.log(step, {"loss": 1 / step})
        if step == 50:
            phase.text("notes.txt", "half way")
            tracker.model(exported, "apart", ["reviewed"])
    tracker.finish()
    found = runs(server.url, "apart")
    assert losses(server.url, found["one"]) == [(step, 1 / step) for step in range(1, 101)]
    assert {one.info.status for one in found.values()} == {"FINISHED"}
    said = capfd.readouterr().err
    for what in ("artifact config.json", "data set scenes/train", "model apart"):
        assert f"the {what}" in said, said
    assert "mlflow-artifacts" in said and "413" in said and "403" in said and "404" in said

    # Now models can be begun, but their files are too large for the proxy still.
    proxy.refuse = {"mlflow-artifacts": 413}
    for _ in range(2):
        assert main(["track", "sync", str(run)]) == 2
        assert "413" in capfd.readouterr().err
    proxy.refuse = {}
    assert main(["track", "sync", str(run)]) == 0
    assert main(["track", "sync", str(run)]) == 0
    found = runs(server.url, "apart")
    parent = found["run"].info
    assert [one.dataset.name for one in found["run"].inputs.dataset_inputs] == ["scenes/train"]
    assert "config.json" in {one.path for one in client.list_artifacts(parent.run_id)}
    assert [one.path for one in client.list_artifacts(found["one"].info.run_id)] == ["notes.txt"]
    (version,) = client.search_model_versions("name='apart'")
    (model,) = client.search_logged_models([parent.experiment_id])
    assert version.source == f"models:/{model.model_id}" and model.status == "READY" and version.run_id == parent.run_id
    files = {one.path for one in client.list_logged_model_artifacts(model.model_id, "artifacts/exported")}
    assert files == {f"artifacts/exported/{path.name}" for path in exported.iterdir()}
    assert losses(server.url, found["one"]) == [(step, 1 / step) for step in range(1, 101)]


@pytest.mark.long
def test_a_model_on_its_way_is_waited_for_beyond_the_end_of_the_run(server, proxy, tmp_path, exported):
    """Its files take longer than the end of a run may wait for points; they go several at once."""
    config = TrackingConfig(uri=proxy.url, experiment="slow", flush_seconds=0.1, finish_seconds=4)
    tracker = Tracker.open(tmp_path / "run", config)
    deadline = time.monotonic() + 60
    while not (state := State.load(tmp_path / "run")).streams or state.waiting() or state.parcels():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    proxy.slow = 0.3
    tracker.model(exported, "slow")
    began = time.monotonic()
    tracker.finish()
    assert not tracker.unsent and time.monotonic() - began > 4
    files = sum(1 for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert time.monotonic() - began < files * proxy.slow / 2
    (version,) = MlflowClient(server.url, server.url).search_model_versions("name='slow'")
    assert version.tags["trained"] == "run a, step 7"


def test_a_server_that_fails_now_and_then_is_sent_everything_by_one_command(
    server, proxy, tmp_path, exported, monkeypatch, capsys
):
    """One request in twenty fails; the address is known from the training, its password is kept nowhere."""
    run, client = tmp_path / "run", MlflowClient(server.url, server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url.replace("//", "//team:very-secret@"))
    tracker = Tracker.open(run, TrackingConfig(experiment="flaky", live=False), params={"lr": 0.1})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    phase = tracker.phase("one")
    for step in range(1, 51):
        phase.log(step, {"loss": 1 / step})
        phase.text(f"notes/{step}.txt", "so far")
    tracker.model(exported, "flaky")
    tracker.finish()
    proxy.every = 20
    assert main(["track", "sync", str(run)]) == 0
    lines = sum(len(path.read_text().splitlines()) for path in (run / "tracking").glob("*.jsonl"))
    said = capsys.readouterr()
    assert f"{run}: {lines} records sent to {proxy.url}" in said.out
    assert proxy.refused > 10 and not (tmp_path / "mlflow.db").exists()
    found = runs(server.url, "flaky")
    assert losses(server.url, found["one"]) == [(step, 1 / step) for step in range(1, 51)]
    assert len(client.list_artifacts(found["one"].info.run_id, "notes")) == 50
    assert len(client.search_model_versions("name='flaky'")) == 1
    assert len(client.search_logged_models([found["run"].info.experiment_id])) == 1
    kept = "".join(path.read_text() for path in (run / "tracking").glob("*.json*"))
    assert "very-secret" not in kept and "team" not in kept


def test_what_mlflow_refuses_for_good_is_lost_alone_and_said(server, tmp_path, manifest, exported, capfd):
    """Odd names are made valid; a record that is refused anyway costs its own entries only, and people hear of it."""
    config = TrackingConfig(uri=server.url, experiment="refused", flush_seconds=0.1)
    manifest.write_text(json.dumps({"name": "x" * 600, "split": "train", "samples": 3}))
    tracker = Tracker.open(tmp_path / "run", config, params={"": "nothing", "/lr": 0.1})
    tracker.dataset(manifest, "training")
    tracker.model(exported, "no/such name")
    phase = tracker.phase("one")
    for step in (1, 2, 3):
        phase.log(step, {"loss": 1.0, "loss//data/mine": 2.0, "": 3.0, "../up": 4.0})
    phase.journal.append({"step": 4, "metrics": {"loss": 1.0}, "time": -5})
    phase.log(5, {"loss": 1.0})
    tracker.finish()
    found = runs(server.url, "refused")
    assert [step for step, _ in losses(server.url, found["one"])] == [1, 2, 3, 5]
    assert set(found["one"].data.metrics) == {"loss", "loss/data/mine", "_", "up"}
    assert found["run"].data.params == {"_": "nothing", "lr": "0.1"}
    assert {one.info.status for one in found.values()} == {"FINISHED"}
    said = [line for line in capfd.readouterr().err.splitlines() if "MLflow refuses" in line]
    assert len(said) == 3 and "data set xxx" in said[0] + said[1], said
    assert any("no/such name" in line for line in said) and any("'step': 4" in line for line in said)
    assert not tracker.unsent
