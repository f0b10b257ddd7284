"""Every checkpoint that a run keeps is a logged model of a real MLflow server, registered or not, without its weights."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow import MlflowClient

from onediff.cli import main
from onediff.config.tracking import TrackingConfig
from onediff.tracking.tracker import Tracker


def manifest(folder: Path, split: str) -> Path:
    path = folder / split / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"name": "scenes", "split": split, "samples": 3}))
    return path


def train(run: Path, config: TrackingConfig, data: Path, resumed: int, until: int, keep: int) -> None:
    """Steps with a checkpoint every ten, of which the newest `keep` stay."""
    tracker = Tracker.open(run, config, params={"optimizer": {"lr": 0.1}})
    tracker.dataset(data, "training", "pairs")
    phase = tracker.phase("two", resumed_step=resumed)
    for step in range(resumed + 1, until + 1):
        phase.log(step, {"loss": 1 / step, "loss/pairs": 1 / step, "lr": 0.1})
        if step % 10 == 0:
            phase.log(step, {"validation/loss": 2 / step})
            phase.checkpoints("two", list(range(10, step + 1, 10))[-keep:])
    tracker.finish()
    assert main(["track", "sync", str(run)]) == 0


def test_kept_checkpoints_are_logged_models_with_their_metrics_and_data(server, tmp_path):
    """Removed ones go, a crash and an evaluation double nothing, registering adds the weights to the model that is there."""
    run, client = tmp_path / "run", MlflowClient(server.url, server.url)
    config = TrackingConfig(uri=server.url, experiment="checkpoints", live=False)
    train(run, config, manifest(tmp_path / "data", "train"), 0, 30, keep=2)
    experiment = client.get_experiment_by_name("checkpoints").experiment_id

    def models() -> dict[str, object]:
        return {model.name: model for model in client.search_logged_models([experiment])}

    found = models()
    (parent,) = client.search_runs([experiment], "tags.`onediff.kind` = 'run'")
    (phase,) = client.search_runs([experiment], "tags.`onediff.kind` = 'phase'")
    assert set(found) == {"two-20", "two-30"}
    for step in (20, 30):
        model = found[f"two-{step}"]
        assert {(one.key, one.value, one.step, one.dataset_name) for one in model.metrics} == {
            ("loss", 1 / step, step, "scenes/train"),
            ("loss/pairs", 1 / step, step, "scenes/train"),
            ("validation/loss", 2 / step, step, None),
        }
        assert model.source_run_id == parent.info.run_id and model.status == "READY"
        assert model.params == {"optimizer.lr": "0.1"}
        assert model.tags["onediff.weights"] == str(run / "checkpoints" / "phase-two" / f"step-{step:08d}")
        assert client.list_logged_model_artifacts(model.model_id) == []
    linked = {(one.model_id, one.step) for one in phase.outputs.model_outputs}
    assert linked >= {(found[f"two-{step}"].model_id, step) for step in (20, 30)}
    assert len(client.get_metric_history(phase.info.run_id, "loss")) == 30, "the phase has no point twice"

    # After a crash: steps 26 to 30 are done again, in another MLflow run of the phase.
    train(run, config, tmp_path / "data" / "train" / "manifest.json", 25, 40, keep=2)
    assert models()["two-30"].model_id == found["two-30"].model_id and set(models()) == {"two-30", "two-40"}

    # An evaluation, and a registration of the same weights.
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "onediff.yaml").write_text("trained: {run: run, phase: two, step: 40}\n")
    tracker = Tracker.attach(run, config)
    tracker.evaluation("scenes-test-two-40").log(0, {"CIDEr": 0.4})  # and once more, with other settings
    scores = tracker.evaluation("scenes-test-two-40")
    scores.log(0, {"CIDEr": 0.5})
    scores.scores_of("two", 40, manifest(tmp_path / "data", "test"))
    tracker.model(exported, "kept")
    tracker.finish(None)
    assert main(["track", "sync", str(run)]) == 0
    (version,) = client.search_model_versions("name='kept'")
    assert version.source == f"models:/{models()['two-40'].model_id}" and set(models()) == {"two-30", "two-40"}
    found = [(one.value, one.dataset_name) for one in models()["two-40"].metrics if one.key == "CIDEr"]
    assert found == [(0.5, "scenes/test")]

    # What is registered outlives its checkpoint.
    train(run, config, tmp_path / "data" / "train" / "manifest.json", 40, 60, keep=2)
    assert set(models()) == {"two-40", "two-50", "two-60"}
    assert models()["two-40"].tags["onediff.weights"].startswith("removed")


def test_a_server_is_upgraded_in_the_middle_of_a_run(server, proxy, tmp_path, capfd):
    """It has no logged models at first: one line says so and nothing waits for it; then all that are kept are there."""
    run, client = tmp_path / "run", MlflowClient(server.url, server.url)
    config = TrackingConfig(uri=proxy.url, experiment="upgraded", live=False)
    proxy.refuse = {"logged-models": 404}
    data = manifest(tmp_path / "data", "train")
    train(run, config, data, 0, 20, keep=3)
    assert capfd.readouterr().err.count("older than version 3") == 1
    experiment = client.get_experiment_by_name("upgraded").experiment_id
    assert client.search_logged_models([experiment]) == []
    proxy.refuse = {}
    train(run, config, data, 20, 30, keep=3)
    found = {model.name: len(model.metrics) for model in client.search_logged_models([experiment])}
    assert found == {"two-10": 3, "two-20": 3, "two-30": 3}
    (phase,) = client.search_runs([experiment], "tags.`onediff.kind` = 'phase'")
    assert [point.step for point in client.get_metric_history(phase.info.run_id, "loss")] == list(range(1, 31))
