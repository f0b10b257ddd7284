"""What a run is at: its heartbeat names the section, and a stop request is heeded inside an evaluation."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import small_run

from onediff.runs import section as sections


def test_sections_nest_count_their_seconds_and_name_what_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "_heartbeat", None)
    monkeypatch.setattr(sections, "PAUSE_SECONDS", 0.0)

    @sections.section("saving")
    def saved() -> None:
        time.sleep(0.02)

    def told() -> dict:
        return json.loads((tmp_path / sections.FILE).read_text())

    saved()  # nobody keeps a heartbeat yet
    sections.stepped(1)
    assert not (tmp_path / sections.FILE).exists() and sections.seconds_by_section() == {}
    sections.keep_heartbeat(tmp_path, "one")
    assert (told()["phase"], told()["section"]) == ("one", "start")
    sections.stage("loading")
    sections.stepped(7)
    assert (told()["section"], told()["step"], told()["done"]) == ("step", 7, 7)
    with sections.section("evaluation"):
        sections.beat(12, 40)
        saved()
        assert (told()["section"], told()["step"]) == ("evaluation", 7)
        sections.beat(13, 40)
        assert (told()["done"], told()["total"]) == (13, 40)
    assert told()["section"] == "step" and {*told()["seconds"]} == {"start", "loading", "step", "evaluation", "saving"}
    assert 0.02 <= sections.seconds_by_section()["saving"] < told()["moved"] - told()["began"] + 1
    sections.keep_heartbeat(tmp_path, "two")
    assert sum(sections.seconds_by_section().values()) < 1, "a later phase counts from its own beginning"


@pytest.mark.long
@pytest.mark.parametrize("decides", [True, False], ids=["decides the best step", "decides nothing"])
def test_a_warning_during_an_evaluation_is_heeded_inside_it_and_the_step_is_measured_after_the_resume(
    tmp_path, decides
):
    """Two gloo ranks under ZeRO-3; the evaluation would take far longer than the warning leaves."""
    data, run = small_run.render(tmp_path / "data", 80, 40), tmp_path / "run"
    more = {"phases.two.steps": 3, "phases.two.evaluate_every": 2}
    more |= {"phases.two.best": '{"metric": "evaluation/CIDEr"}'} if decides else {}
    more |= {"evaluation.max_new_tokens": 64, "evaluation.batch_size": 1, "training.sample_captions": 0}
    words = [*small_run.overrides(data, 2, **more), "--run", str(run), "--processes", "2"]
    command = [sys.executable, "-m", "onediff", "train", "configs/demo.yaml", *words]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)

    def told() -> dict:
        try:
            return json.loads((run / "heartbeat.json").read_text())
        except (OSError, ValueError):
            return {}

    try:
        while not (told().get("section") == "evaluation" and (told().get("done") or 0) >= 2):
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.1)
        at = told()
        assert at["total"] > 3 * at["done"], "the evaluation was nearly through before it could be disturbed"
        process.send_signal(signal.SIGUSR1)
        began = time.monotonic()
        assert process.wait(120) == 75, (tmp_path / "log").read_text()[-3000:]
        assert time.monotonic() - began < 45
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert not list((run / "evaluation").glob("*/scores.json"))
    assert sorted(path.name for path in (run / "checkpoints" / "phase-two").glob("step-*")) == ["step-00000002"]
    done = small_run.onediff(["train", str(run), "--processes", "2", "--resume"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((run / "evaluation").glob("*-2/scores.json")) and (run / "phase-two" / "finished.json").is_file()
    assert small_run.metrics(run, "two", "time/goodput")[3] > 0
