"""A run that was killed, or asked to stop, goes on as if nothing had happened, packed rows included (phase two)."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
from small_run import SECONDS, config, metrics, onediff, overrides, render
from small_run import train as train_unpacked

from onediff.cli import main
from onediff.config.compose import write_run
from onediff.errors import UserError
from onediff.runs.folder import RunFolder
from onediff.training.start import starting_model

STEPS = 16
MORE = {"phases.two.pack": 256, "phases.warm-up.steps": 2, "model.delta.dropout": 0.1}

PROFILED = {"training.profile": "{steps: 2, wait: 3}", "training.deterministic": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def before_two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has finished all but its last phase, to be copied and gone on with."""
    run = tmp_path_factory.mktemp("runs") / "before-two"
    done = train(run, data, STEPS, "--processes", "2", "--phases", "warm-up,one")
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def undisturbed(before_two: Path, data: Path) -> Path:
    """Profiled and in deterministic mode; what it is compared with is neither."""
    run = shutil.copytree(before_two, before_two.with_name("undisturbed"))
    done = train(run, data, STEPS, "--processes", "2", "--resume", **PROFILED)
    assert done.returncode == 0, done.stderr
    return run


def train(run: Path, data: Path, steps: int, *words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return train_unpacked(run, data, steps, *words, **MORE, **more)


def started(run: Path, data: Path, *words: str) -> forked.Forked:
    command = ["-m", "onediff", "train", "configs/demo.yaml", *overrides(data, STEPS, **MORE), "--run", str(run)]
    nowhere, environment = Path(os.devnull), {**os.environ, "OMP_NUM_THREADS": "1"}
    return forked.start([*command, "--processes", "2", *words], environment, nowhere, nowhere)


def wait_for_step(run: Path, phase: str, step: int) -> None:
    """Until the journal holds `step` of `phase`."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if (run / "tracking" / f"phase-{phase}.jsonl").exists() and max(metrics(run, phase), default=0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} of phase {phase} was not reached in {SECONDS} s")


def is_loading(run: Path) -> bool:
    """Whether rank 0 of a run has come to its weights and data, and not to a step."""
    beat = run / "heartbeat.json"
    return beat.exists() and json.loads(beat.read_text())["section"] == "loading"


def ranks_of(process: forked.Forked) -> list[int]:
    """Process ids of the ranks below a local launcher."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def test_a_profile_traces_the_steps_that_it_was_asked_for_on_every_rank(undisturbed):
    """That it changes no loss is part of the comparisons below."""
    folder = undisturbed / "profile" / "phase-two" / "steps-4-to-5"
    assert sorted(path.name for path in folder.iterdir()) == ["rank-0000.json.gz", "rank-0001.json.gz"]
    for path in folder.iterdir():
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        spans = {event["name"]: event["dur"] for event in events if event.get("ph") == "X"}
        assert [name for name in sorted(spans) if name.startswith("step ")] == ["step 4", "step 5"]
        assert {"aten::mm", "aten::_fused_adamw_", "gloo:all_reduce"} & set(spans), sorted(spans)
    records = [json.loads(line) for line in (undisturbed / "tracking" / "phase-two.jsonl").read_text().splitlines()]
    kept = [(record["artifact"], record["to"]) for record in records if "profile" in record.get("artifact", "")]
    assert kept == [("profile/phase-two/steps-4-to-5", "profile/steps-4-to-5")]


def test_a_killed_run_resumes_bit_identically(undisturbed, before_two, data, tmp_path):
    run = shutil.copytree(before_two, tmp_path / "killed")
    process = started(run, data, "--resume")
    step = random.Random(time.time_ns()).randint(6, STEPS - 2)
    wait_for_step(run, "two", step)
    for pid in ranks_of(process):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(300) != 0
    done = train(run, data, STEPS, "--processes", "2", "--resume")
    assert done.returncode == 0, done.stderr
    assert min(metrics(undisturbed, "two", "real_token_share").values()) > 0.7, "three samples in a row, not two"
    for name in ("loss", "grad_norm", "targets"):
        assert metrics(run, "two", name) == metrics(undisturbed, "two", name), f"killed at step {step}"


@pytest.mark.long
def test_a_branch_goes_on_bit_identically_under_its_own_name(undisturbed, tmp_path, capsys):
    kept = sorted((path, path.stat().st_mtime_ns) for path in undisturbed.rglob("*") if path.is_file())
    branch = tmp_path / "branch"
    assert main(["branch", f"{undisturbed}@one:15", str(branch)]) == 0
    assert f"onediff train {branch} --resume" in capsys.readouterr().out
    assert main(["branch", f"{undisturbed}@one:15", str(branch)]) == 2
    assert f"{branch}: already exists" in capsys.readouterr().err
    assert main(["branch", f"{undisturbed}@one:11", str(tmp_path / "other")]) == 2
    assert "it has steps 15, 16" in capsys.readouterr().err and not (tmp_path / "other").exists()
    done = onediff(["train", str(branch), "--processes", "2", "--resume"])
    assert done.returncode == 0, done.stderr
    assert "phase one continues from step 15" in done.stderr
    for name in ("loss", "grad_norm", "targets"):
        assert metrics(branch, "one", name) == {STEPS: metrics(undisturbed, "one", name)[STEPS]}
        assert metrics(branch, "two", name) == metrics(undisturbed, "two", name)
    known = [json.loads((run / "tracking" / "run.json").read_text()) for run in (undisturbed, branch)]
    assert known[1]["lineage"]["onediff.branched_from"] == f"{undisturbed}@one:15"
    assert known[1]["lineage"]["onediff.origin.id"] == known[0]["id"] != known[1]["id"]
    assert kept == sorted((path, path.stat().st_mtime_ns) for path in undisturbed.rglob("*") if path.is_file())


def test_a_stop_request_to_one_rank_stops_all_with_a_checkpoint_and_while_they_load_before_a_step(
    undisturbed, data, tmp_path
):
    run = tmp_path / "stopped"
    process = started(run, data)
    wait_for_step(run, "one", 3)
    os.kill(ranks_of(process)[1], signal.SIGUSR1)
    assert process.wait(300) == 75
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["phase"]) == ("stopped", "one")
    assert "SIGUSR1" in status["reason"]
    assert f"onediff train {run} --processes 2 --resume" in (run / "logs" / "process.rank0.log").read_text()
    stopped_at = max(metrics(run, "one"))
    (run / "heartbeat.json").unlink()
    process = started(run, data, "--resume")
    while process.poll() is None and not is_loading(run):
        time.sleep(0.02)
    os.kill(ranks_of(process)[1], signal.SIGUSR1)
    assert process.wait(300) == 75
    reason = json.loads((run / "status.json").read_text())["reason"]
    assert reason == "SIGUSR1 before the first step of this start" and max(metrics(run, "one")) == stopped_at
    done = onediff(["train", str(run), "--processes", "2", "--resume"])
    assert done.returncode == 0, done.stderr
    assert f"continues from step {stopped_at}" in done.stderr
    assert metrics(run, "one") == metrics(undisturbed, "one")
    assert metrics(run, "two") == metrics(undisturbed, "two")


def test_a_signal_to_the_whole_group_stops_with_a_checkpoint_though_workers_get_it_too(data, tmp_path):
    run = tmp_path / "group"
    words = [*overrides(data, 500, **{"data.workers": 1}), "--run", str(run), "--phases", "warm-up"]
    process = subprocess.Popen(
        [sys.executable, "-m", "onediff", "train", "configs/demo.yaml", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for_step(run, "warm-up", 3)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(300) == 75
    newest = max((run / "checkpoints" / "phase-warm-up").glob("step-*"))
    assert int(newest.name.rpartition("-")[2]) == max(metrics(run, "warm-up"))


@pytest.mark.long
def test_another_number_of_processes_continues_the_same_curve(undisturbed, before_two, data, tmp_path):
    run = shutil.copytree(before_two, tmp_path / "other")
    process = started(run, data, "--resume")
    wait_for_step(run, "two", 6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 75
    done = train(run, data, STEPS, "--processes", "1", "--resume")
    assert done.returncode == 0, done.stderr
    assert list(metrics(run, "two").values()) == pytest.approx(list(metrics(undisturbed, "two").values()), abs=1e-5)


def test_a_changed_data_order_is_refused(undisturbed, data):
    done = train(undisturbed, data, STEPS + 4, "--resume", **{"data.seed": 5})
    # Every phase is finished: nothing is repeated, nothing is refused.
    assert done.returncode == 0, done.stderr
    (told,) = [line for line in done.stderr.splitlines() if "settings change: " in line]
    assert "data.seed 0 → 5" in told and f"phases.two.steps {STEPS} → {STEPS + 4}" in told
    (undisturbed / "phase-two" / "finished.json").unlink()
    done = train(undisturbed, data, STEPS + 4, "--resume", **{"data.seed": 5})
    assert done.returncode == 2
    assert "data.seed changed" in done.stderr
    assert "settings change: " not in done.stderr, "the run has these settings since the start before"
    assert "Traceback" not in done.stderr


def test_a_phase_does_not_start_from_a_checkpoint_before_the_end_of_the_last(before_two, data, tmp_path):
    run = shutil.copytree(before_two, tmp_path / "deleted")
    shutil.rmtree(run / "checkpoints" / "phase-one" / f"step-{STEPS:08d}")
    folder, settings = RunFolder(run), config(data, STEPS, **MORE)
    with pytest.raises(UserError, match=rf"phase one, which ended at step {STEPS}, but .*step-00000015 is its newest"):
        starting_model(settings, "two", folder, SimpleNamespace(tp_size=1, cp_size=1))


def test_a_truncated_checkpoint_is_named(undisturbed, data):
    (undisturbed / "phase-two" / "finished.json").unlink(missing_ok=True)
    newest = max((undisturbed / "checkpoints" / "phase-two").glob("step-*"))
    file = next(newest.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    done = train(undisturbed, data, STEPS, "--resume")
    assert done.returncode == 2
    assert file.name in done.stderr
    assert "Traceback" not in done.stderr
    status = json.loads((undisturbed / "status.json").read_text())
    assert status["state"] == "failed" and file.name in status["reason"]


def test_a_fault_of_the_last_phase_is_refused_before_the_first_begins(data, tmp_path):
    done = train(tmp_path / "run", data, 1, **{"phases.two.vision_last": 9})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("error: phases.two.vision_last: 9, but the vision tower has 2 layers")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_first_start_is_told_nothing_of_what_it_cannot_resume_and_a_second_without_checkpoints_is(data, tmp_path):
    """Jobs of the launcher say --resume from their first start on."""
    run = tmp_path / "job"
    run.mkdir()
    write_run(config(data, 1, **MORE), run / "config.yaml")
    words = ["train", str(run), "--phases", "warm-up", "--resume", "--run", str(run)]
    first = onediff(words)
    assert first.returncode == 0 and "nothing to resume" not in first.stderr, first.stderr
    shutil.rmtree(run / "checkpoints")
    (run / "phase-warm-up" / "finished.json").unlink()
    second = onediff(words)
    assert second.returncode == 0 and f"nothing to resume in {run}: the run starts" in second.stderr, second.stderr
