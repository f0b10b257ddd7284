"""A search for good settings: what is proposed, ended early, resumed."""

import signal
import subprocess
import sys
import time

import pytest
import slurm_cluster
import small_run
from launch_runs import HOUSE

from launcher.search import Goal, Search, best_first, open_study, require_same, table
from launcher.space import split_space
from onediff.config.compose import load_run
from onediff.errors import UserError
from onediff.tracking.journal import Journal

GOAL = Goal("validation/loss", "two", "lower")
FIXED, SPACE = split_space(["optimizer.lr=1e-4..1e-2:log"])


class Descent:
    """A run whose loss falls towards how far its rate is from 1e-3; each look at it is a step."""

    def __init__(self, path, overrides, steps=6):
        (self.lr,) = (float(word.partition("=")[2]) for word in overrides)
        self.journal, self.steps, self.step, self.left = (
            Journal(path / "tracking" / "phase-two.jsonl", 100),
            steps,
            0,
            0,
        )

    def state(self):
        if self.lr > 8e-3:
            return "two failed: loss is nan"
        self.step += 1
        far = max(self.lr / 1e-3, 1e-3 / self.lr)
        self.journal.append({"step": self.step, "metrics": {"validation/loss": far + 1 / self.step}})
        return "finished" if self.step == self.steps else "going"

    def end(self):
        self.steps = self.step

    def leave(self):
        self.left += 1


def test_good_settings_are_found_and_what_falls_behind_is_ended_early(tmp_path):
    study = open_study(tmp_path / "search", GOAL, seed=0, pruning=True)
    Search(study, tmp_path / "search", GOAL, SPACE, Descent, at_most=2, trials=20).run(pause=0)
    best, *_ = best_first(study, GOAL)
    assert best.value == study.best_value and 0.7e-3 < best.params["optimizer.lr"] < 1.4e-3
    ends = [trial.state.name for trial in study.trials]
    assert len(ends) == 20 and ends.count("PRUNED") >= 3 and ends.count("COMPLETE") >= 4
    told = table(study, GOAL, SPACE).splitlines()
    assert told[1].split()[0] == f"{best.number:03d}" and "validation/loss" in told[1] and len(told) == 21


def test_an_interrupted_search_goes_on_with_the_runs_that_were_going(tmp_path):
    started = []

    def start(path, overrides):
        if len(started) == 3:
            raise KeyboardInterrupt
        started.append(Descent(path, overrides))
        return started[-1]

    study = open_study(tmp_path / "search", GOAL, seed=0, pruning=False)
    with pytest.raises(KeyboardInterrupt):
        Search(study, tmp_path / "search", GOAL, SPACE, start, at_most=2, trials=5).run(pause=0)
    assert sum(run.left for run in started) >= 1
    again = open_study(tmp_path / "search", GOAL, seed=0, pruning=False)
    Search(again, tmp_path / "search", GOAL, SPACE, Descent, at_most=2, trials=5).run(pause=0)
    assert [trial.number for trial in again.trials] == [0, 1, 2, 3, 4]
    assert all(trial.state.is_finished() for trial in again.trials)
    other = Goal("CIDEr", "two", "higher")
    with pytest.raises(UserError, match=r"was started for a lower validation/loss, not a higher CIDEr"):
        open_study(tmp_path / "search", other, seed=0, pruning=False)


def test_a_search_is_not_continued_with_other_settings_except_for_the_bounds_of_its_ranges(tmp_path):
    def search(*words):
        fixed, space = split_space(words)
        study = open_study(tmp_path / "search", GOAL, seed=0, pruning=False)
        require_same(study, tmp_path / "search", load_run("configs/demo.yaml", fixed), space)
        Search(study, tmp_path / "search", GOAL, space, Descent, at_most=1, trials=len(study.trials) + 1).run(pause=0)

    search("optimizer.lr=1e-4..1e-2:log", "training.seed=1")
    search("optimizer.lr=1e-5..1e-2:log", "training.seed=1")
    for words, told in (
        (["optimizer.lr=1e-4..1e-2:log", "training.seed=2"], r"training.seed 1 → 2"),
        (["optimizer.lr=1e-4,1e-3", "training.seed=1"], r"optimizer.lr a range of numbers \(log\) → 1e-4,1e-3"),
    ):
        with pytest.raises(UserError, match=told):
            search(*words)


def test_a_metric_that_is_not_there_fails_the_trial_and_names_those_that_are(tmp_path):
    goal = Goal("CIDEr", "two", "higher")
    study = open_study(tmp_path / "search", goal, seed=0, pruning=True)
    Search(study, tmp_path / "search", goal, SPACE, Descent, at_most=1, trials=1).run(pause=0)
    (trial,) = study.trials
    assert trial.state.name == "FAIL" and "no metric 'CIDEr'; it has validation/loss" in trial.user_attrs["why"]


def test_a_range_whose_end_is_no_valid_value_starts_nothing(tmp_path):
    words = ["optimizer.lr=-1..1e-3", "--metric", "loss", "--profile", "local"]
    done = small_run.onediff(["launch", "search", "demo.yaml", *words], cwd=tmp_path)
    assert done.returncode == 2 and "optimizer.lr" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_no_phase_measures_is_refused_before_the_first_run(tmp_path):
    words = ["optimizer.lr=1e-4..1e-3", "--metric", "validation/loss", "--profile", "local"]
    done = small_run.onediff(["launch", "search", "demo.yaml", *words], cwd=tmp_path)
    assert done.returncode == 2 and "add phases.two.validate_every=100" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_real_runs_on_this_machine_are_searched_and_taken_up(tmp_path):
    data = small_run.render(tmp_path / "data")
    fixed = small_run.overrides(data, 6, **{"phases.two.validate_every": 2, "phases.two.validation.split": "test"})
    words = ["configs/demo.yaml", *fixed, "optimizer.lr=1e-4..1e-2:log", "--metric", "validation/loss"]
    words += ["--trials", "2", "--at-most", "1", "--profile", "local", "--pause", "0.2"]
    command = [sys.executable, "-m", "onediff", "launch", "search", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    steps = tmp_path / "runs" / "demo-search" / "trial-000" / "tracking" / "phase-two.jsonl"
    until = time.monotonic() + 300
    while not steps.exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 130, out
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (tmp_path / "runs" / "demo-search" / "table.txt").read_text().splitlines()[1:]
    assert "validation/loss" in first and {first[:3], second[:3]} == {"000", "001"}
    assert small_run.metrics(tmp_path / "runs" / "demo-search" / "trial-000", "two")


@pytest.mark.long
@pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing()))
def test_runs_on_slurm_do_not_notice_that_their_search_was_interrupted(launched, cluster):
    run = launched(losses=True, seconds=0.1)
    run.write()
    words = ["run.yaml", "optimizer.lr=1e-4..1e-2:log", "--metric", "loss", "--trials", "3", "--at-most", "2"]
    words += ["--profile", str(run.home / "profile.yaml"), "--pause", "0.5", "--no-pruning"]
    command = [sys.executable, "-m", "onediff", "launch", "search", *words]
    options = {"cwd": run.home, "env": {**cluster.env, "PYTHONPATH": str(HOUSE)}, "text": True}
    search = run.home / "runs" / "tiny-search"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    until = time.monotonic() + 300
    while not list(search.glob("trial-*/steps-one.txt")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "queued runs continue" in out, out
    assert cluster.sh("squeue", "-h"), "the run was ended with the search"
    done = subprocess.run(command, capture_output=True, timeout=900, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = (search / "table.txt").read_text().splitlines()[1:]
    losses = [float(row.split()[-1]) for row in rows]
    assert len(rows) == 3 and losses == sorted(losses), rows
    for trial in search.glob("trial-*"):
        steps = (trial / "steps-one.txt").read_text().splitlines()
        assert len(steps) == 20, f"{trial}: a run was started twice"
