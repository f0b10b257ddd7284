"""Real trainings with two processes and a real MLflow server: what they leave there, and that kills change nothing."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from browser import Browser
from mlflow import MlflowClient
from mlflow_server import MlflowServer, free_port
from small_run import PHASES, SECONDS, metrics, onediff, overrides, render, train

from onediff.data.heldout import HeldOut

pytestmark = pytest.mark.long

STEPS = 12
EVERY_STEP = {
    *("loss", "grad_norm", "lr", "lr/delta", "targets", "tokens", "samples_per_second", "tokens_per_second"),
    *("data_wait_share", "step_seconds", "skipped_samples"),
}
AT_A_GATHERING = {
    *("step_seconds/p50", "step_seconds/p90", "step_seconds/p99", "straggler/rank", "straggler/lag_seconds"),
    *("memory/peak_gib/rank_0000", "memory/peak_gib/rank_0001"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def default_store(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own client fetches artifacts from the store that the environment names."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)


def settings(server: MlflowServer, experiment: str) -> dict[str, object]:
    return {
        "tracking.live": True,
        "tracking.uri": server.url,
        "tracking.experiment": experiment,
        "tracking.system_seconds": 1,
        "tracking.finish_seconds": 120,
        "training.captions_every": 6,
        "training.sample_captions": 2,
        "training.profile": "{steps: 1, wait: 2}",
    }


@pytest.fixture(scope="module")
def run(server: MlflowServer, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained, evaluated and exported."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    done = train(folder, data, STEPS, "--processes", "2", **settings(server, "whole"))
    assert done.returncode == 0, done.stderr
    for words in (
        ["evaluate", str(folder), "--processes", "2", "bootstrap=0"],
        ["export", str(folder), str(folder.parent / "exported"), "--register", "small", "--alias", "reviewed"],
    ):
        done = onediff(words)
        assert done.returncode == 0, done.stderr
    return folder


def runs(server: MlflowServer, experiment: str) -> dict:
    """Active runs of an experiment by name, a child by its own part of it; a name twice is a failure."""
    client = MlflowClient(server.url, server.url)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    named = {run.info.run_name.rpartition(" / ")[2]: run for run in found}
    assert len(named) == len(found), named.keys()
    return named


def history(server: MlflowServer, run, key: str) -> list[tuple[int, float]]:
    points = MlflowClient(server.url, server.url).get_metric_history(run.info.run_id, key)
    return [(point.step, point.value) for point in points]


def test_the_tree_of_runs(server, run, data):
    client = MlflowClient(server.url, server.url)
    found = runs(server, "whole")
    evaluation = f"evaluation pairs-test-two-{STEPS}"
    assert set(found) == {"demo", *PHASES, "nodes", evaluation}
    parent = found["demo"]
    assert {one.info.status for one in found.values()} == {"FINISHED"}
    tags = parent.data.tags
    assert {"git.commit", "command", "hosts", "nodes", "attention", "device", "package.torch", "package.mlflow"} <= set(
        tags
    )
    assert tags["world_size"] == "2" and parent.data.params["phases.one.couple"] == "true"
    inputs = {(one.dataset.name, one.tags[0].value) for one in parent.inputs.dataset_inputs}
    assert inputs == {("singles/train", "training"), ("pairs/train", "training")}
    host = tags["nodes"]
    steps = [step for step, _ in history(server, found["nodes"], f"system/{host}/cpu_utilization_percentage")]
    assert len(steps) > 5 and steps == sorted(set(steps))
    for name in PHASES:
        child = found[name]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert ("started_from" in child.data.tags) == (name != PHASES[0])
        missing = (EVERY_STEP | AT_A_GATHERING) - {"lr/delta"} - set(child.data.metrics)
        assert not missing, name
        for key in ("loss", "step_seconds"):
            assert [step for step, _ in history(server, child, key)] == list(range(1, STEPS + 1))
        assert history(server, child, "loss") == list(metrics(run, name).items())
        table = client.load_table(
            parent.info.experiment_id, f"captions/step-{STEPS:08d}/table.json", [child.info.run_id]
        )
        assert list(table)[:6] == [
            *("before", "after", "reference", "prediction"),
            *("attention on before", "attention on after"),
        ]
        traces = {file.path for file in client.list_artifacts(child.info.run_id, "profile/steps-3-to-3")}
        assert traces == {f"profile/steps-3-to-3/rank-000{rank}.json.gz" for rank in range(2)}
        assert len(table) == 2 and table["attention on after"][0]["type"] == "image"
    assert {"loss/pairs", "loss/singles", "progress/epochs/pairs"} <= set(found["two"].data.metrics)
    scores = json.loads(next((run / "evaluation").glob("*/scores.json")).read_text())["scores"]
    assert found[evaluation].data.metrics == pytest.approx({k: v for k, v in scores.items() if v is not None})
    assert [one.dataset.name for one in found[evaluation].inputs.dataset_inputs] == ["pairs/test"]
    files = {file.path for file in client.list_artifacts(found[evaluation].info.run_id)}
    assert files == {"scores.json", "predictions.jsonl", "references.jsonl", "report.html"}


def test_the_registered_models_say_what_onediff_caption_says(server, run, data, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow adds the code of a model that it loads
    heldout = HeldOut.open(data / "pairs" / "test", 1)
    (pair,) = heldout.references
    images = []
    for role in ("before", "after"):
        images.append(str(tmp_path / f"{role}.png"))
        Path(images[-1]).write_bytes(heldout.sample(pair).images[role])
    done = onediff(["caption", *images, "--model", str(run)])
    assert done.returncode == 0, done.stderr
    import pandas as pd

    table = pd.DataFrame([images], columns=["before", "after"])
    for name in ("models:/onediff-demo@best", "models:/onediff-demo/latest", "models:/small@reviewed"):
        assert list(mlflow.pyfunc.load_model(name).predict(table)) == [done.stdout.strip()], name
    table.to_csv(tmp_path / "pair.csv", index=False)
    words = [sys.executable, "-m", "mlflow", "models", "predict", "--model-uri", "models:/onediff-demo@best"]
    words += ["--input-path", str(tmp_path / "pair.csv"), "--content-type", "csv", "--env-manager", "local"]
    subprocess.run([*words, "--output-path", str(tmp_path / "said.json")], check=True, timeout=SECONDS)
    assert json.loads((tmp_path / "said.json").read_text())["predictions"] == [done.stdout.strip()]


def test_mlflow_serves_the_registered_model(server, run, data, tmp_path):
    """`mlflow models serve`, asked over HTTP for captions and for what is known of them."""
    heldout = HeldOut.open(data / "pairs" / "test", 2)
    pairs = [
        [base64.b64encode(heldout.sample(pair).images[role]).decode() for role in ("before", "after")]
        for pair in heldout.references
    ]
    port = free_port()
    words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/onediff-demo@best", "--env-manager"]
    log = (tmp_path / "serve.log").open("wb")
    # MLflow starts `uvicorn` by its name, as it finds it in an activated environment.
    there = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    words += ["local", "-p", str(port)]
    serving = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, env=there)
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                assert serving.poll() is None and time.monotonic() < deadline, (tmp_path / "serve.log").read_text()
                time.sleep(0.5)

        def asked(**params: object) -> list:
            body = {"dataframe_split": {"columns": ["before", "after"], "data": pairs}, "params": params}
            address = f"http://127.0.0.1:{port}/invocations"
            request = Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urlopen(request, timeout=SECONDS) as answer:
                return json.load(answer)["predictions"]

        said = asked()
        assert len(said) == len(pairs) and all(isinstance(caption, str) for caption in said)
        assert [one["caption"] for one in asked(judged=True)] == said
    finally:
        if serving.poll() is None:
            os.killpg(serving.pid, signal.SIGKILL)
        serving.wait()
        log.close()


def test_killed_five_times_at_random(server, run, data, tmp_path):
    """SIGKILL to every process of the training: one parent, one child a phase, the histories of an undisturbed run."""
    killed, draw = tmp_path / "killed", random.Random(time.time_ns())
    log = tmp_path / "killed.log"
    words = ["train", "configs/demo.yaml", *overrides(data, STEPS, **settings(server, "killed"))]
    words += ["--run", str(killed), "--processes", "2"]
    moments = []
    for attempt in range(6):
        with log.open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "onediff", *words, *(["--resume"] if attempt else [])],
                stdout=said,
                stderr=said,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        if attempt < 5:
            wanted = records(killed) + draw.randint(1, 12)
            deadline = time.monotonic() + SECONDS
            while records(killed) < wanted and process.poll() is None:
                assert time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.3))
            moments.append(records(killed))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait(2 * SECONDS)
    assert code == 0, f"killed after {moments} records: {log.read_text(errors='replace')[-4000:]}"
    # On a busy machine MLflow may not have everything within `finish_seconds`, and a sender outlives its killed training.
    deadline = time.monotonic() + SECONDS
    while (sent := onediff(["track", "sync", str(killed)])).returncode:
        assert time.monotonic() < deadline, sent.stderr
        time.sleep(1)
    found = runs(server, "killed")
    assert set(found) == {"killed", *PHASES, "nodes"}, moments
    for name in PHASES:
        assert found[name].info.status == "FINISHED"
        for key in ("loss", "grad_norm", "targets", "tokens", "lr"):
            assert history(server, found[name], key) == list(metrics(run, name, key).items()), f"{name} {key} {moments}"
    assert int(found["killed"].data.tags["restarts"]) >= 1


def records(run: Path) -> int:
    """Metrics that the phases of a run have written so far."""
    return sum(path.read_text().count('"metrics"') for path in (run / "tracking").glob("phase-*.jsonl"))


def test_people_see_the_captions_and_the_curves(server, run, tmp_path):
    """MLflow's own pages in Chromium: losses without scrolling, a model for a checkpoint, captions with their images."""
    child = runs(server, "whole")["two"]
    client = MlflowClient(server.url, server.url)
    place = f"captions/step-{STEPS:08d}/table.json"
    text = client.load_table(child.info.experiment_id, place, [child.info.run_id])["reference"][0]
    experiment = f"{server.url}/#/experiments/{child.info.experiment_id}"
    with Browser(tmp_path / "profile") as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=1600, height=1200, deviceScaleFactor=1, mobile=False)
        browser.open(f"{experiment}/runs/{child.info.run_id}/model-metrics")
        for name in ("loss/pairs", "loss/singles"):
            browser.wait(in_view(f"demo / two ({name})"), 180)
        lines = "[...document.querySelectorAll('.scatterlayer path.js-line')].map(line => line.getAttribute('d'))"
        curves = browser.wait(f"(found => found.length >= 2 && found)({lines})", 180)
        assert all(curve.count("L") + curve.count("C") + curve.count(",") >= STEPS - 1 for curve in curves[:2])

        browser.open("about:blank#")
        browser.open(f"{experiment}/models")
        browser.wait(in_view(f"two-{STEPS}"), 180)

        browser.open("about:blank#")
        browser.open(f"{experiment}/runs/{child.info.run_id}/artifacts/{place}")
        browser.wait(f"document.body.innerText.includes({json.dumps(text)})", 180)
        shown = "[...document.images].filter(one => one.src.includes('get-artifact') && one.naturalWidth > 0)"
        browser.wait(f"{shown}.length >= 4", 180)


def in_view(text: str) -> str:
    """Whether an element of a page that holds nothing but `text` is where people see it without scrolling."""
    box = "(box => box.width > 0 && box.top >= 0 && box.bottom <= innerHeight)(one.getBoundingClientRect())"
    found = f"one.childElementCount === 0 && one.textContent.trim() === {json.dumps(text)} && {box}"
    return f"[...document.querySelectorAll('body *')].some(one => {found})"
