"""A folder that is copied is another run: the first one's record in a real MLflow server stays as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

from mlflow import MlflowClient

from onediff.cli import main
from onediff.config.tracking import TrackingConfig
from onediff.tracking.tracker import Tracker


def train(run: Path, config: TrackingConfig, resumed: int, until: int) -> None:
    tracker = Tracker.open(run, config)
    phase = tracker.phase("one", resumed_step=resumed)
    for step in range(resumed + 1, until + 1):
        phase.log(step, {"loss": 1 / step})
    tracker.finish()
    assert main(["track", "sync", str(run)]) == 0


def recorded(url: str, experiment: str) -> dict[str, tuple[str, list[int], dict[str, str]]]:
    """By a run's name: its phase's id and steps, and its own tags."""
    client = MlflowClient(url, url)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    parents = {run.info.run_id: run for run in found if run.data.tags["onediff.kind"] == "run"}
    told = {}
    for run in found:
        if run.data.tags["onediff.kind"] == "phase":
            parent = parents[run.data.tags["mlflow.parentRunId"]]
            steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
            told[parent.info.run_name] = (run.info.run_id, steps, {"id": parent.info.run_id, **parent.data.tags})
    assert len(told) == len(parents)
    return told


def test_a_copy_is_a_run_of_its_own_and_a_moved_folder_is_not(server, tmp_path, caplog):
    config = TrackingConfig(uri=server.url, experiment="copies", live=False)
    train(tmp_path / "a", config, 0, 10)
    before = recorded(server.url, "copies")["a"]
    for name in ("b", "c"):
        shutil.copytree(tmp_path / "a", tmp_path / name)
    train(tmp_path / "b", config, 5, 12)
    assert f"{tmp_path / 'b'} is a copy of the run {tmp_path / 'a'}" in caplog.text
    assert main(["track", "sync", str(tmp_path / "c")]) == 0
    found = recorded(server.url, "copies")
    assert set(found) == {"a", "b", "c"} and found["a"] == before and before[1] == list(range(1, 11))
    assert found["b"][1] == list(range(1, 13)) and found["c"][1] == list(range(1, 11))
    for name in ("b", "c"):
        tags = found[name][2]
        assert tags["onediff.copied_from"] == str(tmp_path / "a")
        assert tags["onediff.origin.mlflow_run_id"] == before[2]["id"]

    (tmp_path / "a").rename(tmp_path / "moved")
    train(tmp_path / "moved", config, 10, 11)
    found = recorded(server.url, "copies")
    assert set(found) == {"a", "b", "c"} and found["a"][0] == before[0] and found["a"][1] == list(range(1, 12))
