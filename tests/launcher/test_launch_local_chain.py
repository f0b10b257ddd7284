"""`onediff launch submit --profile local`: the same chain and rules without Slurm, and what the commands say about it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from launch_runs import Launched

from launcher.record import Attempt, write_json


@pytest.fixture
def launched(tmp_path):
    def make(**wish: object) -> Launched:
        run = Launched(tmp_path / "home", **wish)
        run.profile |= {"scheduler": "local"}
        return run

    return make


def test_a_chain_runs_here_and_is_not_repeated(launched):
    run = launched()
    for words in (["--phases", "one"], []):
        done = run.submit(*words, nodes="1")
        assert done.returncode == 0, done.stderr
    assert run.curve("one") == run.curve("two") and len(run.curve("two")) == 20
    states = run.states()
    assert [state["state"] for state in states.values()] == ["finished"] * 3
    assert (run.run / "logs" / "two.1.rank1.log").read_text().startswith("rank 1 of 2 from step 0")
    again = run.submit(nodes="1")
    assert again.returncode == 0 and "all requested phases have finished" in again.stdout
    assert "Everything has finished." in run.onediff("explain", "run").stdout


def test_a_killed_rank_is_restarted_and_bad_input_is_not(launched):
    run = launched(
        faults=[
            {"phase": "one", "step": 13, "rank": 1, "do": "kill"},
            {"phase": "two", "step": 1, "rank": 0, "do": "exit 2", "once": False},
        ]
    )
    done = run.submit(nodes="1")
    assert done.returncode == 2
    first, second = run.record.attempts("one")
    assert first.exit_code == 128 + signal.SIGKILL and second.cause == "finished" and second.first_step >= 10
    (failed,) = run.record.attempts("two")
    assert failed.action == "fail" and "shards/x.tar: no such shard" in failed.reason
    assert not run.record.attempts("evaluate")
    told = run.onediff("explain", "run").stdout
    assert "two: failed" in told and "stopped for good" in told and "onediff launch resume" in told


def test_a_stopped_chain_resumes_where_it_stopped(launched):
    run = launched(faults=[{"phase": "one", "step": 6, "do": "wait"}])
    run.write()
    words = ["submit", "run.yaml", "--run", "run", "--profile", str(run.home / "profile.yaml"), "--no-weights-check"]
    process = subprocess.Popen(
        [sys.executable, "-m", "onediff", "launch", *words],
        cwd=run.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    run.wait_step("one", 5)
    beside = run.submit(nodes="1")
    assert beside.returncode == 2 and "another process is running it" in beside.stderr
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 75 and b"onediff launch resume" in out
    (attempt,) = run.record.attempts("one")
    assert attempt.cause == "stopped" and 4 <= attempt.last_step < 20
    resumed = run.onediff("resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    lines = (run.run / "steps-one.txt").read_text().splitlines()
    assert len(lines) == len(run.curve("one")) == 20, "no step is done twice"


def test_another_configuration_is_refused_in_the_same_folder(launched):
    run = launched()
    assert run.submit("--phases", "one", nodes="1").returncode == 0
    for words in ([], ["--dry-run"], ["--phases", "one", "--dry-run"]):  # phase one has finished
        other = run.submit("optimizer.lr=0.5", *words, nodes="1")
        assert other.returncode == 2 and "holds a run with another configuration (optimizer.lr " in other.stderr


# What a command may import beyond the standard library and this project.
READS_YAML = {"yaml", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
RENDER = ["data", "render.yaml", "--dry-run", "--profile", "local"]
IMPORTED = """
import atexit, json, sys
before = set(sys.modules)
atexit.register(lambda: print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))))
from onediff.cli import main
sys.exit(main(["launch", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["status"], set()),
        (["status", "--json"], set()),
        (["submit", "--help"], set()),
        (["data", "--help"], set()),
        (RENDER, READS_YAML),
    ],
)
def test_commands_answer_at_once(words, allowed, tmp_path):
    """Nearly all the time of a short command is its imports; `benchmarks/answers.py` measures it."""
    (tmp_path / "render.yaml").write_text("name: scenes\ncommands: [render --out scenes --pairs 10]\n")
    command = [sys.executable, "-c", IMPORTED, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout.splitlines()[-1])) - sys.stdlib_module_names
    # Python's own configuration and Cython put names of their own beside a package's.
    others = {name for name in imported if not name.startswith(("_sysconfigdata", "_cython_", "cython_runtime"))}
    assert "onediff" in others
    assert others - {"onediff", "launcher", "data_prep"} <= allowed


def test_logs_follow_until_they_are_left(launched):
    run = launched()
    assert run.submit("--phases", "one", nodes="1").returncode == 0
    command = [sys.executable, "-m", "onediff", "launch", "logs", "run", "-f", "--rank", "1"]
    process = subprocess.Popen(command, cwd=run.home, stdout=subprocess.PIPE, text=True)
    log = run.run / "logs" / "one.1.rank1.log"
    assert process.stdout is not None
    assert process.stdout.readline() == f"==> {log} <==\n"
    assert process.stdout.readline() == "rank 1 of 2 from step 0 on " + os.uname().nodename + "\n"
    with log.open("a") as file:
        file.write("more\n")
    began = time.monotonic()
    assert process.stdout.readline() == "more\n" and time.monotonic() - began < 5
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    missing = run.onediff("logs", "run", "--rank", "7")
    assert missing.returncode == 2 and "ranks 0 to 1" in missing.stderr


def test_status_is_watched_until_nothing_is_left(launched):
    run = launched()
    write_json(run.record.plan_file, {"phases": {"one": {}}})
    write_json(run.run / "status.json", {"phase": "one", "step": 3, "steps_total": 20, "loss": 1.5})
    going = Attempt(1, "pid 1", ["localhost"], 2, time.time(), 0)
    run.record.write_attempts("one", [going])
    command = [sys.executable, "-m", "onediff", "launch", "status", "run", "--watch"]
    process = subprocess.Popen(command, cwd=run.home, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{run.run}\n" and process.stdout.readline().startswith("phase")
    assert "running" in (line := process.stdout.readline()) and "3 of 20" in line and "1.5000" in line
    going.ended, going.action = time.time(), "done"
    run.record.write_attempts("one", [going])
    write_json(run.run / "phase-one" / "finished.json", {"step": 20, "loss": 0.5})
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "finished" in out and "20 of 20" in out, out
