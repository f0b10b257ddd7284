"""`onediff runs` and `onediff runs diff`: from run folders alone, quickly, and without MLflow."""

import json
import subprocess
import sys
import time

import pytest

from onediff.cli import main
from onediff.config.tracking import TrackingConfig
from onediff.tracking.tracker import Tracker


@pytest.fixture
def folder(tmp_path):
    """Two runs that differ in learning rate, data and results; the second was killed by a signal."""
    for name, rate, loss, status in (("base", 0.1, 2.0, "FINISHED"), ("low", 0.01, 3.0, "KILLED")):
        tracker = Tracker.open(
            tmp_path / name,
            TrackingConfig(live=False),
            params={"optimizer": {"lr": rate}, "model": {"layers": 6}},
            tags={"slurm.job_id": "17"},
        )
        manifest = tmp_path / f"{name}.json"
        manifest.write_text(json.dumps({"name": "scenes", "split": "train", "samples": 10 if rate > 0.05 else 20}))
        tracker.dataset(manifest, "training")
        phase = tracker.phase("one")
        for step in range(1, 6):
            phase.log(step, {"loss": loss, "tokens_per_second": 1234.0})
        scores = tracker.evaluation("held-out")
        scores.log(0, {"CIDEr": loss / 2})
        tracker.finish(status)
    return tmp_path


def test_list(folder, capsys):
    assert main(["runs", str(folder)]) == 0
    head, base, low = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["run", "state", "phase", "step"]
    assert base.split()[:8] == ["base", "finished", "one", "5", "2.0000", "100.0", "1,234", "17"]
    assert low.split()[:2] == ["low", "killed"]


def test_list_as_json_and_status(folder, capsys):
    """status.json, where the training writes one, knows the state best; a process that is gone is not running."""
    status = {"state": "running", "phase": "one", "step": 5, "steps_total": 50, "updated": time.time()}
    (folder / "low" / "status.json").write_text(json.dumps(status))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path = folder / "low" / "tracking" / "run.jsonl"
    lines = path.read_text().splitlines()
    start = {**json.loads(lines[0]), "pid": gone.pid}
    path.write_text(json.dumps(start, separators=(",", ":")) + "\n")
    assert main(["runs", str(folder / "low"), "--json"]) == 0
    (low,) = json.loads(capsys.readouterr().out)
    assert (low["state"], low["step"], low["steps"]) == ("died", 5, 50)


def test_diff(folder, capsys):
    assert main(["runs", "diff", str(folder / "base"), str(folder / "low"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["configuration"] == {"optimizer.lr": ["0.1", "0.01"]}
    assert found["data"]["scenes/train (training)"][1].endswith("20 samples")
    assert found["code"] == {}
    assert found["results"] == {"evaluation held-out: CIDEr": [1.0, 1.5], "one: loss": [2.0, 3.0]}
    assert found["earlier"] == {}
    assert main(["runs", "diff", str(folder / "base"), str(folder / "low")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "results" and "code: the same" in lines
    assert any("2  →  3  (+50.0 %)" in line for line in lines)
    assert any("CIDEr" in line and "100.0  →  150.0  (+50.0 %)" in line for line in lines)


def test_diff_is_short_and_sets_scores_of_other_steps_side_by_side(folder, capsys):
    for name, step, cider in (("base", 600, 1.0), ("low", 900, 1.5)):
        tracker = Tracker.attach(folder / name, TrackingConfig(live=False))
        tracker.phase("one", resumed_step=step - 1).log(
            step, {"loss": cider, "grad_norm": cider, "progress/epochs/scenes": cider}
        )
        tracker.evaluation(f"scenes-test-one-{step}").log(0, {"CIDEr": cider})
        tracker.finish(None)
    words = ["runs", "diff", str(folder / "base"), str(folder / "low")]
    assert main(words) == 0
    short = capsys.readouterr().out
    assert "  and 2 other metrics (--all shows them)" in short and "grad_norm" not in short
    (line,) = [line for line in short.splitlines() if "evaluation scenes-test: CIDEr" in line]
    assert line.endswith("CIDEr  100.0 (one 600)  →  150.0 (one 900)  (+50.0 %)")
    assert main([*words, "--all"]) == 0
    assert "one: grad_norm" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["evaluation scenes-test: weights"] == ["one 600", "one 900"]
    assert results["evaluation scenes-test: CIDEr"] == [1.0, 1.5]


def test_a_run_shows_the_scores_of_its_newest_evaluation_whatever_its_name(folder, capsys):
    for step, cider in ((600, 1.0), (1000, 2.0)):
        tracker = Tracker.attach(folder / "low", TrackingConfig(live=False))
        tracker.evaluation(f"scenes-test-one-{step}").log(0, {"CIDEr": cider})
        tracker.finish(None)
        time.sleep(0.01)  # journals count milliseconds
    assert main(["runs", str(folder / "low"), "--json"]) == 0
    (low,) = json.loads(capsys.readouterr().out)
    assert low["scores"] == {"CIDEr": 2.0}


def test_diff_tells_what_a_run_changed_on_its_way(folder, capsys):
    """Both runs end with the same settings, and one of them began with others."""
    for name in ("base", "low"):
        (folder / name / "config.yaml").write_text("optimizer: {lr: 0.1}\n")
    for number, rate in ((1, 0.3), (2, 0.2)):
        (folder / "low" / f"config.before-{number}.yaml").write_text(f"optimizer: {{lr: {rate}}}\n")
    words = ["runs", "diff", str(folder / "base"), str(folder / "low")]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "configuration: the same" in lines
    assert f"  {folder / 'low'} had the settings of config.before-1.yaml first, then optimizer.lr 0.3 → 0.2" in lines
    assert f"  {folder / 'low'} had the settings of config.before-2.yaml first, then optimizer.lr 0.2 → 0.1" in lines
    assert main([*words, "--json"]) == 0
    earlier = json.loads(capsys.readouterr().out)["earlier"][str(folder / "low")]
    assert earlier["config.before-2.yaml"] == {"optimizer.lr": [0.2, 0.1]}


@pytest.mark.parametrize("words", [["runs", "nowhere"], ["runs", "diff", "nowhere", "there"], ["runs", "."]])
def test_mistakes(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("onediff: error: ")


def test_heavy_packages_stay_out(folder):
    """Neither MLflow nor torch is imported to list runs."""
    code = (
        "import sys; from onediff.cli import main; main(['runs', sys.argv[1]]);"
        "print([name for name in ('mlflow', 'torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_job_and_host_of_a_run_is_kept(tmp_path, monkeypatch, capsys):
    """Requeued, resumed elsewhere, evaluated by a job of its own: no id is lost, and each stream knows its own jobs."""
    config = TrackingConfig(live=False)
    for job, hosts in (("11", "a,b"), ("12", "b,c")):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        tracker = Tracker.open(tmp_path / "run", config, tags={"host": hosts})
        tracker.phase("one").finish()
        tracker.finish()
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    tracker = Tracker.attach(tmp_path / "run", config)
    tracker.evaluation("test").finish()
    tracker.finish(None)
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    Tracker.open(tmp_path / "run", config, tags={"host": "a"}).finish()
    starts = [json.loads(line) for line in (tmp_path / "run" / "tracking" / "run.jsonl").read_text().splitlines()]
    newest = [record["open"]["tags"] for record in starts if "open" in record][-1]
    assert newest["slurm.job_ids"] == "11,12,13,14" and newest["hosts"].startswith("a,b,c,")
    phase = (tmp_path / "run" / "tracking" / "phase-one.jsonl").read_text()
    assert '"slurm.job_ids":"11,12"' in phase and "13" not in phase.partition('"time"')[0]
    assert main(["runs", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["jobs"] == "11,12,13,14"
