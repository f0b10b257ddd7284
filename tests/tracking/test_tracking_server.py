"""Runs in a real MLflow server: what arrives, what a bad server costs, and that a killed run stays one run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow_server import free_port

from onediff.cli import main
from onediff.config.tracking import TrackingConfig
from onediff.tracking.node import NodeMetrics
from onediff.tracking.tracker import Tracker

TRAINER = '''
"""Plays a training of two phases: a step, a checkpoint every ten steps, resumed from the newest one."""
import sys, time
from pathlib import Path
from onediff.config.tracking import TrackingConfig
from onediff.tracking.tracker import Tracker

run, uri, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
checkpoint = run / "checkpoint"
phase, step = checkpoint.read_text().split() if checkpoint.exists() else ("one", "0")
config = TrackingConfig(uri=uri, experiment="kills", flush_seconds=0.1, request_seconds=5)
tracker = Tracker.open(run, config, params={"optimizer": {"lr": 0.1}})
for name in ("one", "two")[("one", "two").index(phase):]:
    first = int(step) if name == phase else 0
    stream = tracker.phase(name, resumed_step=first)
    for now in range(first + 1, 61):
        stream.log(now, {"loss": 1 / now, "seconds": time.time()})
        time.sleep(pause)
        if now % 10 == 0:
            stream.durable()
            aside = checkpoint.with_name("aside")
            aside.write_text(f"{name} {now}")
            aside.rename(checkpoint)
    stream.finish()
tracker.finish()
'''


def runs(url: str, experiment: str) -> dict:
    """Active runs of an experiment by name, a child by its own part of it; a name twice is a failure."""
    client = MlflowClient(url, url)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    named = {run.info.run_name.rpartition(" / ")[2]: run for run in found}
    assert len(named) == len(found), named.keys()
    return named


def history(url: str, run, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(url, url).get_metric_history(run.info.run_id, key)]


def test_two_runs_are_compared_by_settings_and_results_together(server, tmp_path):
    """What the run list filters and plots by: scores and last losses on the run, its settings on its children."""
    for name, rate, cider in (("good", 0.1, 3.5), ("bad", 0.2, 2.5)):
        settings = {
            "optimizer": {"lr": rate},
            "phases": {"one": {"steps": 30}, "two": {"steps": 9}},
            "tracking": {"live": 1},
        }
        config = TrackingConfig(uri=server.url, experiment="compared", live=False, system_seconds=1)
        tracker = Tracker.open(tmp_path / name, config, params=settings)
        node = NodeMetrics(tmp_path / name, config, "node-a").start()
        for phase, steps in (("one", 30), ("two", 9)):
            stream = tracker.phase(phase)
            for step in range(1, steps + 1):
                stream.log(step, {"loss": rate + 1 / step, "lr": rate, "straggler/rank": 1.0})
        tracker.evaluation("scenes-test-two-9").log(0, {"CIDEr": cider})
        wait_for(lambda name=name: (tmp_path / name / "tracking" / "node-node-a.jsonl").read_text().count("metrics"))
        node.stop()
        tracker.finish()
        assert main(["track", "sync", str(tmp_path / name)]) == 0
    client = MlflowClient(server.url, server.url)
    experiment = client.get_experiment_by_name("compared")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    question = "metrics.CIDEr > 3 and params.optimizer.lr = '0.1'"
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id], question)}
    assert set(found) == {"good", "good / evaluation scenes-test-two-9"}
    assert found["good"].data.metrics == {"CIDEr": 3.5, "loss": 0.1 + 1 / 9}
    assert found["good"].data.tags["evaluation"] == "scenes-test-two-9"
    every = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{found['good'].info.run_id}'")
    children = {run.info.run_name: run for run in every}
    assert children["good / two"].data.params == {"optimizer.lr": "0.1", "phases.two.steps": "9"}
    assert set(children) == {f"good / {name}" for name in ("one", "two", "evaluation scenes-test-two-9", "nodes")}
    assert all(key.startswith("system/node-a/") for key in children["good / nodes"].data.metrics)
    assert {run.info.status for run in every} == {"FINISHED"}
    assert found["good"].data.tags["mlflow.user"] and found["good"].data.tags["mlflow.source.name"]


def test_tree_of_runs(server, tmp_path, monkeypatch):
    """Parent and children, parameters, tags, data sets, tables and artifacts; two nodes; two starts; no secrets."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("HF_TOKEN", "a-very-secret-value")
    run = tmp_path / "tree"
    config = TrackingConfig(uri=server.url, experiment="tree", live=False, system_seconds=1)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"schema": 1, "name": "scenes", "split": "train", "samples": 7, "shards": []}))

    tracker = Tracker.open(run, config, params={"hub": {"token": "abc"}, "lr": 0.1}, tags={"attention": "sdpa"})
    nodes = [NodeMetrics(run, config, host).start() for host in ("node-a", "node-b")]
    tracker.dataset(manifest, "training")
    tracker.tags({"note": "https://me:password@host/x a-very-secret-value"})
    one = tracker.phase("one", tags={"started_from": "nothing"})
    for step in range(1, 31):
        one.log(step, {"loss": 1 / step, "loss/source one": 2.0, "bad*name": float("nan")})
    images = {"before": np.zeros((8, 8, 3), np.uint8), "after": np.full((8, 8, 3), 255, np.uint8)}
    one.table(30, "samples", [{**images, "reference": "a cube was added", "prediction": "<b>a ball</b>"}])
    one.finish()
    time.sleep(2.5)
    for node in nodes:
        node.stop()
    tracker.finish("KILLED")

    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    tracker = Tracker.open(run, config, params={"hub": {"token": "abc"}, "lr": 0.2})
    two = tracker.phase("two")
    two.log(1, {"loss": 3.0})
    two.finish()
    scores = tracker.evaluation("held-out")
    scores.log(0, {"CIDEr": 1.5})
    scores.finish()
    tracker.finish()
    assert main(["track", "sync", str(run)]) == 0

    found = runs(server.url, "tree")
    assert set(found) == {"tree", "one", "two", "nodes", "evaluation held-out"}
    parent = found.pop("tree")
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in found.values())
    assert {run.info.status for run in [parent, *found.values()]} == {"FINISHED"}
    tags = parent.data.tags
    assert tags["slurm.job_ids"] == "4711,4712" and tags["restarts"] == "1" and tags["attention"] == "sdpa"
    assert tags["nodes"] == "node-a,node-b" and "processors" in tags["node.node-b"]
    assert tags["note"] == "https://***@host/x ***"
    assert parent.data.params == {"hub.token": "***", "lr": "0.1"} and tags["changed.lr"] == "0.1 → 0.2"
    data = parent.inputs.dataset_inputs[0]
    assert data.dataset.name == "scenes/train" and len(data.dataset.digest) == 32
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "training"}
    for host in ("node-a", "node-b"):
        points = history(server.url, found["nodes"], f"system/{host}/cpu_utilization_percentage")
        steps = [step for step, _ in points]
        assert len(steps) >= 2 and steps == sorted(set(steps))
    assert history(server.url, found["one"], "loss") == [(step, 1 / step) for step in range(1, 31)]
    assert len(history(server.url, found["one"], "bad_name")) == 30
    assert found["one"].data.tags["started_from"] == "nothing"
    assert history(server.url, found["evaluation held-out"], "CIDEr") == [(0, 1.5)]
    client = MlflowClient(server.url, server.url)
    names = {file.path for file in client.list_artifacts(found["one"].info.run_id, "samples/step-00000030")}
    assert {Path(name).name for name in names} == {"000-after.png", "000-before.png", "index.html", "table.json"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    place = "samples/step-00000030/table.json"
    table = client.load_table(parent.info.experiment_id, place, [found["one"].info.run_id])
    assert table["prediction"].tolist() == ["<b>a ball</b>"] and table["before"][0]["type"] == "image"
    page = Path(client.download_artifacts(found["one"].info.run_id, "samples/step-00000030/index.html", str(tmp_path)))
    assert "&lt;b&gt;a ball" in page.read_text() and page.read_text().count("data:image/jpeg") == 2
    kept = "".join(path.read_text() for path in (run / "tracking").glob("**/*") if path.is_file())
    assert "a-very-secret-value" not in kept


def test_killed_five_times(server, tmp_path):
    """SIGKILL at random, five times: one parent, one child a phase, the histories of a run that was never killed."""
    run, draw = tmp_path / "killed", random.Random(5)
    run.mkdir()
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    for attempt in range(6):
        words = [sys.executable, str(script), str(run), server.url, "0.2" if attempt < 5 else "0"]
        process = subprocess.Popen(words, start_new_session=True)
        if attempt < 5:
            time.sleep(draw.uniform(1.5, 4.5))
            process.kill()
        assert process.wait(300) == (-signal.SIGKILL if attempt < 5 else 0)
    found = runs(server.url, "kills")
    assert set(found) == {"killed", "one", "two"}
    for name in ("one", "two"):
        assert history(server.url, found[name], "loss") == [(step, 1 / step) for step in range(1, 61)]
        assert [step for step, _ in history(server.url, found[name], "seconds")] == list(range(1, 61))
        assert found[name].info.status == "FINISHED"
    marks = [step for name in ("one", "two") for step, _ in history(server.url, found[name], "restart")]
    assert marks and all(step % 10 == 0 for step in marks)
    assert found["killed"].data.tags["restarts"] == "5"


@pytest.mark.parametrize("fault", ["500", "hang", "lose answers"])
def test_faulty_server_loses_nothing(server, proxy, tmp_path, fault):
    """Behind a failing proxy no call waits; what is unsent is said, and arrives once by `onediff track sync`."""
    run, experiment = tmp_path / "faulty", f"faulty {fault}"
    config = TrackingConfig(
        uri=proxy.url, experiment=experiment, flush_seconds=0.1, request_seconds=3, finish_seconds=6
    )
    tracker = Tracker.open(run, config)
    phase = tracker.phase("one")
    phase.log(1, {"loss": 1.0})
    wait_for(lambda: "phase-one" in (sent := sent_text(run)) and '"offset": 0' not in sent)
    proxy.mode = fault
    began = time.perf_counter()
    for step in range(2, 2001):
        phase.log(step, {"loss": 1 / step})
    assert time.perf_counter() - began < config.request_seconds, "a call waited for the server"
    wait_for(lambda: proxy.refused)
    phase.finish()
    began = time.perf_counter()
    tracker.finish()
    assert time.perf_counter() - began < 10
    proxy.mode = "pass"
    assert main(["track", "sync", str(run)]) == 0
    found = runs(server.url, experiment)
    assert history(server.url, found["one"], "loss") == [(step, 1 / step) for step in range(1, 2001)]
    assert found["one"].info.status == found["faulty"].info.status == "FINISHED"


def sent_text(run: Path) -> str:
    path = run / "tracking" / "sent.json"
    return path.read_text() if path.exists() else ""


def test_server_stopped_for_a_while(server, tmp_path):
    """A server that goes away and comes back during a run ends with everything."""
    config = TrackingConfig(uri=server.url, experiment="stopped", flush_seconds=0.1, request_seconds=5)
    tracker = Tracker.open(tmp_path / "run", config)
    phase = tracker.phase("one")
    for step in range(1, 101):
        phase.log(step, {"loss": 1 / step})
    wait_for(lambda: "phase-one" in sent_text(tmp_path / "run"))
    server.stop()
    for step in range(101, 201):
        phase.log(step, {"loss": 1 / step})
    wait_for(lambda: "try 2" in (tmp_path / "run" / "tracking" / "sender.log").read_text())
    server.start()
    phase.finish()
    tracker.finish()
    assert history(server.url, runs(server.url, "stopped")["one"], "loss") == [(s, 1 / s) for s in range(1, 201)]


def wait_for(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_server_never_there(tmp_path, capsys):
    """No server: the run is not stopped, its end waits only shortly, and the journal has everything."""
    uri = f"http://127.0.0.1:{free_port()}"
    tracker = Tracker.open(tmp_path / "run", TrackingConfig(uri=uri, flush_seconds=0.1, request_seconds=1))
    phase = tracker.phase("one")
    for step in range(1, 101):
        phase.log(step, {"loss": 1 / step})
    phase.finish()
    began = time.perf_counter()
    tracker.finish()
    assert time.perf_counter() - began < 20
    assert main(["track", "sync", str(tmp_path / "run")]) == 2
    lines = sum(len(path.read_text().splitlines()) for path in (tmp_path / "run" / "tracking").glob("*.jsonl"))
    assert f"{lines} records of phase-one, run" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "mlflow.db")


def test_registered_model(server, tmp_path, monkeypatch):
    """An exported model becomes a version with aliases, once, and predicts what `caption` says, from paths and base64."""
    import base64

    import mlflow
    import pandas as pd
    import torch
    import yaml
    from PIL import Image
    from transformers import AutoTokenizer

    import onediff
    from onediff.config.compose import configs_folder
    from onediff.config.data import PromptConfig
    from onediff.config.model import ModelConfig
    from onediff.model.onediff import OneDiffModel
    from onediff.model.saved import save_model
    from onediff.model.tokenizer import learn_tokenizer

    config = ModelConfig(**yaml.safe_load((configs_folder() / "models" / "tiny.yaml").read_text()))
    learn_tokenizer(["a red cube was added", "the ball moved to the left"] * 20, 300, tmp_path / "tokenizer")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    save_model(
        OneDiffModel(config),
        config,
        PromptConfig(),
        tokenizer,
        tmp_path / "exported",
        {"run": "test", "phase": "two", "step": 7},
    )
    images = [tmp_path / "before.png", tmp_path / "after.png"]
    for path, colour in zip(images, ("red", "blue"), strict=True):
        Image.new("RGB", (40, 30), colour).save(path)
    expected = onediff.load(tmp_path / "exported").caption(*images)
    assert expected

    run = tmp_path / "run"
    config = TrackingConfig(uri=server.url, experiment="models", live=False)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"name": "scenes", "split": "test", "samples": 3}))
    for aliases in ([], ["reviewed"]):
        tracker = Tracker.attach(run, config)
        score = {"metric": "CIDEr", "value": 0.5, "data": "test"}
        scores = tracker.evaluation("scenes-test-two-7")
        scores.log(0, {"CIDEr": 0.5, "BLEU-4": 0.25})
        scores.scores_of("two", 7, manifest)
        tracker.model(tmp_path / "exported", "captioner", aliases, score)
        tracker.finish(None)
        assert main(["track", "sync", str(run)]) == 0
    client = MlflowClient(server.url, server.url)
    (version,) = client.search_model_versions("name='captioner'")
    for alias in ("best", "reviewed", "latest"):
        assert client.get_model_version_by_alias("captioner", alias).version == version.version
    assert version.tags["trained"] == "run test, phase two, step 7" and version.tags["score.CIDEr.test"] == "0.5"
    (logged,) = client.search_logged_models([client.get_experiment_by_name("models").experiment_id])
    assert logged.name == "two-7" and logged.source_run_id == version.run_id and logged.status == "READY"
    measured = {(one.key, one.value, one.dataset_name) for one in logged.metrics}
    assert measured == {("CIDEr", 0.5, "scenes/test"), ("BLEU-4", 0.25, "scenes/test")}
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "captioner", "version": version.version}]
    (output,) = client.get_run(version.run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (logged.model_id, 7) and version.source == f"models:/{logged.model_id}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow adds the code of a model that it loads
    loaded = mlflow.pyfunc.load_model("models:/captioner@best")
    assert loaded.metadata.signature.inputs.input_names() == ["before", "after"]
    coded = [base64.b64encode(path.read_bytes()).decode() for path in images]
    table = pd.DataFrame([[str(path) for path in images], coded], columns=["before", "after"])
    assert list(loaded.predict(table)) == [expected, expected]
    assert len(loaded.predict(loaded.input_example)) == 1
    judged = loaded.predict(table, params={"judged": True})
    assert list(judged.columns) == ["caption", "confidence", "warning", "instead_of"]
    assert list(judged.caption) == [expected] * 2
    assert client.get_run(version.run_id).info.status == "FINISHED"

    # Other weights are another version; it is the newest, and worse.
    description = tmp_path / "exported" / "onediff.yaml"
    description.write_text(description.read_text().replace("run: test", "run: worse"))
    tracker = Tracker.attach(run, config)
    tracker.model(tmp_path / "exported", "captioner", score={"metric": "CIDEr", "value": 0.4, "data": "test"})
    tracker.finish(None)
    assert main(["track", "sync", str(run)]) == 0
    by_alias = {alias: client.get_model_version_by_alias("captioner", alias).version for alias in ("best", "latest")}
    assert by_alias == {"best": "1", "latest": "2"}
