"""Wrong addresses are refused early; folders of runs that were moved; runs obey MLflow's variables; meters that fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from onediff.cli import main
from onediff.cli.mlflow import server as served
from onediff.config.tracking import TrackingConfig
from onediff.errors import UserError
from onediff.tracking.node import Gpus, Meters
from onediff.tracking.tracker import Tracker


def test_a_folder_of_runs_that_was_moved_keeps_its_artifacts(tmp_path, monkeypatch, capsys):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = tmp_path / "first runs"
    tracker = Tracker.open(first / "demo", TrackingConfig(live=False), params={"lr": 0.1})
    tracker.text("notes/a.txt", "so far")
    tracker.finish()
    assert main(["track", "sync", str(first / "demo")]) == 0
    second = tmp_path / "laptop"
    shutil.copytree(first, second)
    served(second, "127.0.0.1", 5000, False)
    assert "addresses moved" not in capsys.readouterr().err, "the first folder is still here, and may be in use"
    shutil.move(first, tmp_path / "away")
    words = served(second, "127.0.0.1", 5000, False)
    assert f"addresses moved here from {first}" in capsys.readouterr().err
    assert f"sqlite:///{second}/mlflow.db" in words
    client = MlflowClient(f"sqlite:///{second}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("onediff").experiment_id])
    path = client.download_artifacts(run.info.run_id, "notes/a.txt", str(tmp_path))
    assert Path(path).read_text() == "so far"
    with pytest.raises(UserError, match=r"holds no mlflow\.db"):
        served(tmp_path, "127.0.0.1", 5000, False)
    # A run that goes on in the moved folder sends its artifacts there.
    assert main(["track", "sync", str(tmp_path / "away" / "demo")]) == 0
    away = MlflowClient(f"sqlite:///{tmp_path}/away/mlflow.db").get_run(run.info.run_id)
    assert away.info.artifact_uri.startswith((tmp_path / "away" / "mlflow-artifacts").as_uri())


def test_a_run_removed_from_mlflow_for_good_is_sent_again_when_its_next_phase_begins(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker.open(tmp_path / "demo", TrackingConfig(live=False), params={"lr": 0.1})
    tracker.phase("one").log(1, {"loss": 2.0})
    assert main(["track", "sync", str(tmp_path / "demo")]) == 0
    store = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(store, store)
    experiment = client.get_experiment_by_name("onediff").experiment_id
    for run in client.search_runs([experiment]):
        client.delete_run(run.info.run_id)
    words = ["gc", "--backend-store-uri", store, "--tracking-uri", store]
    subprocess.run([sys.executable, "-m", "mlflow", *words], check=True)
    tracker.phase("two").log(1, {"loss": 1.0})
    assert main(["track", "sync", str(tmp_path / "demo")]) == 0
    found = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert found["demo"].data.params == {"lr": "0.1"}
    for name, loss in (("demo / one", 2.0), ("demo / two", 1.0)):
        assert found[name].data.metrics["loss"] == loss
        assert found[name].data.tags["mlflow.parentRunId"] == found["demo"].info.run_id


def test_mlflows_own_variables_say_where_a_new_run_goes(server, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    client = MlflowClient(server.url, server.url)
    made = client.create_run(client.create_experiment("pipeline"), run_name="nightly")
    config = TrackingConfig(uri=server.url, live=False)
    for name, variables, experiment in (
        ("named", {"MLFLOW_EXPERIMENT_NAME": "by name"}, "by name"),
        ("adopted", {"MLFLOW_RUN_ID": made.info.run_id}, "pipeline"),
    ):
        with monkeypatch.context() as shell:
            for key, text in variables.items():
                shell.setenv(key, text)
            tracker = Tracker.open(tmp_path / name, config, params={"lr": 0.1})
        tracker.phase("one").log(1, {"loss": 1.0})
        tracker.finish()
        # Sent from another shell, and added to later.
        Tracker.attach(tmp_path / name, config).finish(None)
        assert main(["track", "sync", str(tmp_path / name)]) == 0
        found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
        assert len(found) == 2 and {run.data.metrics["loss"] for run in found} == {1.0}
    assert client.get_run(made.info.run_id).data.params == {"lr": "0.1"}


def test_a_counter_that_falls_gives_no_rate_and_a_meter_that_is_not_there_costs_itself_alone(tmp_path):
    meters = Meters(tmp_path)
    meters.before = dict.fromkeys(meters.before, 1e18) | {"time": meters.before["time"]}
    found = meters.read()
    assert not any("per_second" in name for name in found) and "cpu_utilization_percentage" in found
    assert all(value >= 0 for value in meters.read().values())

    class NotSupported(Exception):
        pass

    def not_supported(_):
        raise NotSupported

    gpus = Gpus()
    gpus.handles = [0]
    gpus.nvml = SimpleNamespace(
        NVMLError=NotSupported,
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=50),
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=1e9, total=4e9),
        nvmlDeviceGetPowerUsage=not_supported,
        nvmlDeviceGetTemperature=lambda *_: 40,
    )
    assert gpus.read() == {
        "gpu_0_utilization_percentage": 50,
        "gpu_0_memory_usage_megabytes": 1000.0,
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_temperature_celsius": 40,
    }


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("htp://host", "did you mean 'http'?"),
        ("localhost:5000", "no address of MLflow begins with 'localhost'"),
        ("sqlite:/x", "names no file; write sqlite:///FILE"),
        ("http://host:50x0", "names no host, or a wrong port"),
        ("mlruns", "not an address; write http://HOST"),
    ],
)
@pytest.mark.parametrize("words", ["train configs/demo.yaml", "launch submit configs/demo.yaml --profile local"])
def test_a_wrong_address_of_mlflow_is_refused_before_anything_starts(words, uri, told, tmp_path, monkeypatch, capsys):
    words = [*words.split(), "--run", str(tmp_path / "run")]
    assert main([*words, f"tracking.uri={uri}"]) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(words) == 2
    configured, inherited = capsys.readouterr().err.splitlines()
    assert "tracking.uri" in configured and told in configured
    assert "MLFLOW_TRACKING_URI" in inherited and told in inherited
    assert not (tmp_path / "run").exists()
