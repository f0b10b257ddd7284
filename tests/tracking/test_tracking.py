"""The journal, secrets, tables and figures of tracking, without a server; and the embedded store."""

import json
import math
import os
import resource
import shlex
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from onediff.cli import main
from onediff.config.section import validated
from onediff.config.tracking import TrackingConfig
from onediff.errors import UserError
from onediff.tracking.journal import Journal, last, openings, records
from onediff.tracking.node import NodeMetrics
from onediff.tracking.place import how_to_look, tracking_uri
from onediff.tracking.scrub import scrubbed, scrubbed_tree, scrubbed_words
from onediff.tracking.state import State
from onediff.tracking.table import write_table
from onediff.tracking.timing import memory_peaks, step_times, stragglers
from onediff.tracking.tracker import Tracker

OFFLINE = TrackingConfig(live=False)


def test_journal_round_trip(tmp_path):
    """Records come back in order, NaN included; several threads never mix their lines."""
    journal = Journal(tmp_path / "a.jsonl", bound=10)
    journal.append({"open": {"step": 0}})
    threads = [
        threading.Thread(
            target=lambda n=n: [journal.append({"step": s, "metrics": {f"m{n}": math.nan}}) for s in range(500)]
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.durable()
    journal.close()
    found = list(records(tmp_path / "a.jsonl"))
    assert len(found) == 2001 and found[-1][0] == (tmp_path / "a.jsonl").stat().st_size
    for n in range(4):
        mine = [record for _, record in found if f"m{n}" in record.get("metrics", {})]
        assert [record["step"] for record in mine] == list(range(500)) and math.isnan(mine[0]["metrics"][f"m{n}"])
    journal.append({"late": 1})
    assert len(list(records(tmp_path / "a.jsonl"))) == 2001


def test_journal_after_a_torn_line(tmp_path):
    """Half a line, left by a machine that went down, swallows neither the next record nor an opening."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step":1,"metrics":{"loss":1.0},"time":1}\n{"step":2,"metr')
    assert [record["step"] for _, record in records(path)] == [1]
    journal = Journal(path, bound=10)
    journal.append({"open": {"step": 1}})
    assert [next(iter(record)) for _, record in records(path)] == ["step", "open"]
    (offset, record), *rest = openings(path)
    assert offset == path.stat().st_size and record["open"] == {"step": 1} and not rest
    assert last(path, "metrics")["step"] == 1 and last(path, "end") is None


def test_journal_full_disk(tmp_path):
    """What cannot be written waits in memory, bounded, and follows once there is room; nothing raises."""
    code = f"""
import resource, signal, json
from pathlib import Path
from onediff.tracking.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path({str(tmp_path / "a.jsonl")!r}), bound=50)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for step in range(60):
    journal.append({{"step": step, "metrics": {{"loss": 1.0}}, "time": 1}})
held = len(journal.waiting)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append({{"step": 60, "metrics": {{"loss": 1.0}}, "time": 1}})
print(json.dumps([held, len(journal.waiting), journal.dropped]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    held, waiting, dropped = json.loads(done.stdout)
    assert 0 < held <= 50 and waiting == dropped == 0
    assert [record["step"] for _, record in records(tmp_path / "a.jsonl")] == list(range(61))


def test_forked_process_is_silent(tmp_path):
    """A worker forked from rank 0 must not write into its journal."""
    journal = Journal(tmp_path / "a.jsonl", bound=10)
    child = os.fork()
    if not child:
        journal.append({"step": 1, "metrics": {}})
        os._exit(0)
    os.waitpid(child, 0)
    assert not list(records(tmp_path / "a.jsonl"))


def test_superseded():
    """Of steps logged before a restart, those after the checkpoint are replaced; artifacts without a step stay."""
    from onediff.tracking.shipper import superseded  # loads MLflow

    starts = [(0, {"open": {"step": 0}}), (100, {"open": {"step": 50}})]
    assert superseded(90, {"step": 51}, starts) and not superseded(90, {"step": 50}, starts)
    assert not superseded(110, {"step": 51}, starts) and not superseded(90, {"artifact": "x"}, starts)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://user:pass@db/mlflow", "postgresql://***@db/mlflow"),
        ("https://host/x?token=abc&size=3", "https://host/x?token=***&size=3"),
        ("key hf_abcdefghijklmnopqrstuvwxyz", "key ***"),
        ("from environment: 12345678-secret", "from environment: ***"),
        ("max_tokens=12 and a@b.c", "max_tokens=12 and a@b.c"),
    ],
)
def test_scrubbed(text, masked, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "12345678-secret")
    assert scrubbed(text) == masked


def test_scrubbed_names():
    tree = {"hub": {"token": "abc", "max_tokens": 5}, "list": ["http://a:b@c"], "delta_tokens": 32, "password": ""}
    assert scrubbed_tree(tree) == {
        "hub": {"token": "***", "max_tokens": 5},
        "list": ["http://***@c"],
        "delta_tokens": 32,
        "password": "",
    }
    words = ["train", "--token", "abc", "a.password=b", "model.max_tokens=5"]
    assert scrubbed_words(words) == ["train", "--token", "***", "a.password=***", "model.max_tokens=5"]


def test_table(tmp_path):
    """Images given as path, array and image; a column that some rows lack; text that looks like HTML."""
    Image.new("L", (9, 7), 200).save(tmp_path / "grey.png")
    array = np.zeros((7, 9, 3), np.uint8)
    rows = [
        {"before": tmp_path / "grey.png", "after": array, "prediction": "<i>"},
        {"after": Image.new("RGB", (3, 3)), "n": 1},
    ]
    write_table(tmp_path / "t", "samples/t", rows)
    table = json.loads((tmp_path / "t" / "table.json").read_text())
    assert table["columns"] == ["before", "after", "prediction", "n"] and table["data"][1][3] == 1
    assert table["data"][0][0]["filepath"] == "samples/t/000-before.png"
    assert Image.open(tmp_path / "t" / "000-before.png").getpixel((0, 0)) == (200, 200, 200)
    page = (tmp_path / "t" / "index.html").read_text()
    assert page.count("<img") == 3 and "&lt;i&gt;" in page and 'src="http' not in page


def test_pace():
    assert step_times([]) == {} and step_times([1, 2, 3])["step_seconds/p50"] == 2
    assert stragglers([1.0]) == {}
    assert stragglers([1.0, 1.0, 1.5]) == {
        "straggler/rank": 2,
        "straggler/lag_seconds": 0.5,
        "straggler/lag_share": 0.5,
    }
    assert memory_peaks([1.0, 3.0])["memory/peak_gib"] == 3.0 and memory_peaks([]) == {}


def test_nothing_raises(tmp_path, caplog):
    """A metric that is no number, a table without its image, a manifest that is none: warnings, not exceptions."""
    tracker = Tracker.open(tmp_path / "run", OFFLINE)
    tracker.log(1, {"loss": "high"})
    tracker.table(1, "samples", [{"before": tmp_path / "missing.png"}])
    tracker.dataset(tmp_path / "missing.json", "training")
    tracker.finish()
    tracker.log(2, {"loss": 1.0})
    assert sum("failed" in record.message for record in caplog.records) == 3


def test_unknown_key():
    with pytest.raises(UserError, match="did you mean 'experiment'"):
        validated(TrackingConfig, {"experimnt": "x"}, "tracking")


def test_place(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = tracking_uri(tmp_path / "runs" / "demo", OFFLINE)
    assert uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    program, *words = shlex.split(how_to_look(uri))
    assert shutil.which(program) and words == ["mlflow", str(tmp_path / "runs")], "it can be typed as it is printed"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    assert tracking_uri(tmp_path, OFFLINE) == "http://host"
    assert how_to_look("http://host/") == "http://host/#/experiments?workflowType=machine_learning"
    assert tracking_uri(tmp_path, TrackingConfig(uri="http://other")) == "http://other"


def test_node_metrics_go_on(tmp_path):
    """Steps of system metrics increase over a restart of the node's process."""
    config = TrackingConfig(live=False, system_seconds=1)
    Tracker.open(tmp_path, config).finish()
    for _ in range(2):
        node = NodeMetrics(tmp_path, config, "host/1").start()
        time.sleep(1.4)
        node.stop()
    found = [record for _, record in records(tmp_path / "tracking" / "node-host_1.jsonl") if "metrics" in record]
    steps = [record["step"] for record in found]
    assert len(steps) >= 2 and steps == sorted(set(steps))
    assert 0 <= found[0]["metrics"]["system/host_1/cpu_utilization_percentage"] <= 100


def test_embedded_store(tmp_path, monkeypatch, capsys):
    """Two runs of a sweep meet in one store beside their folders; sent twice: the second time there is nothing to do.

    A third went back by itself: each step is there once, and no restart."""
    from mlflow import MlflowClient

    config = TrackingConfig(live=False, sweep="rates")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("a", "b"):
        tracker = Tracker.open(tmp_path / name, config, params={"x": 1})
        phase = tracker.phase("one")
        for step in range(1, 4):
            phase.log(step, {"loss": step})
        tracker.finish()
        tracker = Tracker.open(tmp_path / name, config, params={"x": 1})
        again = tracker.phase("one", resumed_step=2)
        again.log(3, {"loss": 30.0})
        tracker.finish()
    tracker = Tracker.open(tmp_path / "back", TrackingConfig(live=False))
    phase = tracker.phase("one")
    for step in range(1, 4):
        phase.log(step, {"loss": step})
    phase.went_back(1, "from step 3: loss 3 is above 2 times the median 1", 1)
    phase.log(2, {"loss": 20.0})
    tracker.finish()
    for score in (1.0, 2.0):
        tracker = Tracker.attach(tmp_path / "a", config)
        tracker.evaluation("test").log(0, {"CIDEr": score})
        tracker.finish(None)
    assert State.load(tmp_path / "a").unsent()
    assert main(["track", "sync", *(str(tmp_path / name) for name in ("a", "b", "back"))]) == 0
    assert main(["track", "sync", str(tmp_path / "a")]) == 0
    assert f"{tmp_path / 'a'}: 0 records sent" in capsys.readouterr().out
    assert not State.load(tmp_path / "a").unsent()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("onediff").experiment_id])
    names = sorted(run.info.run_name for run in found)
    assert names == ["a", "a / evaluation test", "a / one", "b", "b / one", "back", "back / one", "rates"]
    sweep = next(run.info.run_id for run in found if run.info.run_name == "rates")
    parents = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in found}
    assert parents["a"] == parents["b"] == sweep and parents["rates"] is None
    scores = next(run for run in found if run.info.run_name == "a / evaluation test")
    assert [point.value for point in client.get_metric_history(scores.info.run_id, "CIDEr")] == [2.0]
    named = {run.info.run_name: run for run in found}
    for name, wanted in (("a", [(1, 1.0), (2, 2.0), (3, 30.0)]), ("back", [(1, 1.0), (2, 20.0)])):
        points = client.get_metric_history(named[f"{name} / one"].info.run_id, "loss")
        assert [(point.step, point.value) for point in points] == wanted
    tags = named["back / one"].data.tags
    assert tags["rollback.1"].startswith("to step 1 from step 3: loss 3") and "restarts" not in tags
    assert [point.step for point in client.get_metric_history(named["back / one"].info.run_id, "rollback")] == [1]
    assert list((tmp_path / "mlflow-artifacts").rglob("config.json"))
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_sync_mistakes(tmp_path, capsys):
    assert main(["track", "sync", str(tmp_path)]) == 2
    assert "no record of a run" in capsys.readouterr().err


def test_memory_is_bounded(tmp_path):
    """A long run without a server: the tracker holds nothing in memory; everything is in the journal."""
    tracker = Tracker.open(tmp_path, OFFLINE)
    phase = tracker.phase("one")
    figures = {f"metric/{index}": 1.0 for index in range(10)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in range(20_000):
        phase.log(step, figures)
    assert not phase.journal.waiting
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    tracker.finish()


def test_a_model_is_registered_in_the_store_beside_the_runs_and_nowhere_else(tmp_path, monkeypatch):
    """As `onediff evaluate` leaves it for a run without a server, typed in another folder."""
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for folder in (model, elsewhere):
        folder.mkdir()
    (model / "onediff.yaml").write_text("trained: {run: a}\n")
    tracker = Tracker.attach(tmp_path / "runs" / "a", TrackingConfig(live=False))
    tracker.model(model, "captioner", [], {"metric": "CIDEr", "value": 0.5, "data": "test"})
    tracker.finish(None)
    command = [sys.executable, "-m", "onediff", "track", "sync", str(tmp_path / "runs" / "a")]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db", f"sqlite:///{tmp_path}/runs/mlflow.db")
    (version,) = client.search_model_versions("name='captioner'")
    assert version.tags["score.CIDEr.test"] == "0.5"
    assert list(elsewhere.iterdir()) == []
