"""The files of a run: read while others write them, written so that nobody sees half of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import job
from launcher.outcome import Outcome, judge, read_notes
from launcher.preflight import read_findings
from launcher.record import Attempt, Record, last_lines, write_json
from launcher.rules import Decision
from onediff.errors import UserError

GARBLED = ["", "{", '{"phase": "one", "step": 5}{"phase"', "[1, 2]", "null", "\0\0\0\0", "\ufffd{}"]


def record_of_one(folder: Path) -> Record:
    record = Record(folder)
    write_json(record.plan_file, {"phases": {"one": {}}, "rule": {"restarts_without_progress": 1, "node_failures": 2}})
    return record


@pytest.mark.parametrize("text", GARBLED)
def test_a_garbled_file_of_another_process_is_not_there_yet(tmp_path, text):
    record = record_of_one(tmp_path)
    exits = record.exits("one", 1)
    good = {"rank": 1, "node": "b", "code": 0, "ended": 1.0, "log": "l", "last": []}
    write_json(exits / "1.json", good)
    write_json(tmp_path / "findings" / "b.json", {"node": "b", "faults": []})
    for path in (tmp_path / "status.json", exits / "0.json", tmp_path / "findings" / "a.json"):
        path.write_text(text)
    (tmp_path / "checkpoints" / "phase-one" / "step-00000007").mkdir(parents=True)
    assert record.status() == {} and record.step("one") == 7
    assert read_notes(exits) == [good]
    assert judge(read_notes(exits), ["a", "b"], 2, False, record.status()).blamed == ("a",)
    assert [note["node"] for note in read_findings(tmp_path / "findings")] == ["b"]
    from launcher.follow import explanation, phase_states

    assert phase_states(record)[0].step == 7 and "one: not submitted" in explanation(record)


def test_a_run_without_slurm_says_nothing_of_slurm(tmp_path):
    from launcher.follow import phase_states

    record = Record(tmp_path)
    write_json(record.plan_file, {"phases": {"one": {}, "two": {}}})
    record.write_attempts("one", [Attempt(1, "pid 7", ["localhost"], 2, 0.0, 0)])
    assert [(state.state, state.why) for state in phase_states(record)] == [("running", ""), ("waiting", "")]


def test_a_job_that_was_queued_again_waits_while_slurm_does_not_answer(tmp_path, monkeypatch, capsys):
    """It was called stopped, and a search gave its trial up."""
    from launcher.trial import Queued

    record = record_of_one(tmp_path / "run")
    record.write_jobs([{"phase": "one", "job": "7", "submitted": 0.0}])
    crashed = Attempt(1, "7", ["a"], 2, 0.0, 0, 1.0, 5, "crash", 1, "rank 1 died", action="requeue")
    record.write_attempts("one", [crashed])
    for name, does in (
        ("sbatch", "exit 1"),
        ("squeue", "echo 'error: Unable to contact slurm controller' >&2; exit 1"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    trial = Queued(record.run)
    (state,) = trial.run.status()
    assert state.state == "waiting" and state.why.startswith("Slurm does not answer (squeue: Unable to contact")
    assert state.why.endswith("before: rank 1 died")
    assert trial.state() == trial.state() == "going"
    assert capsys.readouterr().err.count("asking again") == 1
    (tmp_path / "squeue").write_text("#!/bin/sh\n")
    assert trial.run.status()[0].state == "stopped", "Slurm answers that it has no such job"


def test_a_status_with_strange_values_is_borne(tmp_path):
    record = record_of_one(tmp_path)
    write_json(tmp_path / "status.json", {"phase": "one", "step": "five", "loss": None})
    assert record.step("one") == 0


def test_a_run_is_explained_on_a_latin_1_terminal(tmp_path):
    record = record_of_one(tmp_path / "run")
    reason = "rank 0 on a ended with exit code 1: ValueError: 画像 → schön"
    record.write_attempts("one", [Attempt(1, "7", ["a"], 1, 0.0, 0, 1.0, 3, "crash", 1, reason, action="fail")])
    env = {
        **os.environ,
        "PYTHONIOENCODING": "latin-1",
        "PATH": "/nowhere",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    words = [sys.executable, "-m", "onediff", "launch", "explain", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, encoding="latin-1", env=env)
    assert done.returncode == 0 and "ValueError: ?? ? schön: stopped for good" in done.stdout, done.stderr


def test_the_end_of_a_huge_log_is_read_and_nothing_else(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        file.truncate(1 << 35)
        file.seek(0, os.SEEK_END)
        file.write(b"\none\ntwo\n")
    assert last_lines(tmp_path / "log", 2) == ["one", "two"] and last_lines(tmp_path / "no", 2) == []


def test_a_phase_that_cannot_be_queued_again_has_failed(tmp_path, monkeypatch):
    record = record_of_one(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a")
    monkeypatch.setattr(job.signal, "signal", lambda *_: None)
    monkeypatch.setattr(job, "shown", lambda _: {"JobState": "RUNNING", "Partition": "dev"})

    def disabled(*_: object) -> None:
        raise UserError("scontrol: Requested operation is presently disabled for job 7")

    monkeypatch.setattr(job, "queue_again", disabled)
    supervisor = job.Supervisor(tmp_path, "one")
    supervisor.part = {"tasks_per_node": 1}
    supervisor.attempts.append(
        Attempt(1, "7", ["a"], 1, 0.0, 0, 1.0, 3, "crash", 1, "rank 0 on a ended", action="requeue")
    )
    assert supervisor.act(Decision("requeue", "rank 0 on a ended")) == 1
    (attempt,) = record.attempts("one")
    assert attempt.action == "fail" and "cannot be requeued: scontrol: Requested operation" in attempt.reason


def test_the_plan_must_be_readable(tmp_path):
    record = record_of_one(tmp_path)
    record.plan_file.write_text('{"phases": ')
    with pytest.raises(UserError, match=r"plan.json: not readable as JSON"):
        record.plan()


@pytest.mark.parametrize(
    ("state", "updated", "cause", "words"),
    [
        ("stopped", 9.0, "stopped", "stopped on request with a checkpoint (SIGUSR1 at step 13), then preempted"),
        ("running", 9.0, "vanished", "ended without a trace: preempted or killed by Slurm"),
        ("stopped", 1.0, "vanished", "ended without a trace: preempted or killed by Slurm"),
    ],
)
def test_a_preemption_that_leaves_no_time_for_a_word(tmp_path, monkeypatch, state, updated, cause, words):
    """The ranks may have heeded the warning, though Slurm killed them and the supervisor before they were through."""
    record = record_of_one(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(job.signal, "signal", lambda *_: None)
    record.write_attempts("one", [Attempt(1, "7", ["a"], 1, 5.0, 8)])
    status = {"phase": "one", "step": 13, "state": state, "reason": "SIGUSR1 at step 13", "updated": updated}
    write_json(tmp_path / "status.json", status)
    decision = job.Supervisor(tmp_path, "one").close_vanished()
    (attempt,) = record.attempts("one")
    assert decision is not None and (decision.action, attempt.cause, attempt.last_step) == ("requeue", cause, 13)
    assert attempt.reason is not None and attempt.reason.startswith(words)


def test_a_time_limit_that_came_without_a_warning_is_no_cancellation(tmp_path, monkeypatch):
    """Slurm sends its warning to the steps that there are, and one that has not begun yet never hears of it."""
    record_of_one(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a")
    monkeypatch.setattr(job.signal, "signal", lambda *_: None)
    allocation = job.Supervisor(tmp_path, "one").allocation
    stopped, crashed = Outcome("stopped", "stopped on request with a checkpoint (SIGTERM)", 75), Outcome("crash", "x")
    for reason, causes in (("TimeLimit", ["stopped", "interrupted"]), ("None", ["cancelled", "cancelled"])):
        fields = {"JobState": "COMPLETING", "Reason": reason, "Restarts": "0"}
        monkeypatch.setattr(allocation, "shown", lambda fields=fields: fields)
        assert [allocation.ended_by_slurm(one).cause for one in (stopped, crashed)] == causes


def test_a_folder_out_of_reach_is_waited_for(tmp_path, monkeypatch, capsys):
    record = record_of_one(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a")
    write_json(record.plan_file, {**record.plan(), "phases": {"one": {}}})
    monkeypatch.setattr(job.signal, "signal", lambda *_: None)
    monkeypatch.setattr(job, "RETRY_SECONDS", 0.01)
    supervisor = job.Supervisor(tmp_path, "one")
    supervisor.attempts.append(Attempt(1, "7", ["a"], 1, 0.0, 0))
    real, failures = Record.write_attempts, iter([OSError(116, "Stale file handle")] * 2)

    def away(self, phase, attempts):
        for failure in failures:
            raise failure
        real(self, phase, attempts)

    monkeypatch.setattr(Record, "write_attempts", away)
    supervisor.keep()
    assert record.attempts("one")[0].number == 1 and capsys.readouterr().out.count("Stale file handle") == 2
    monkeypatch.setattr(job, "STORAGE_SECONDS", 0.0)
    failures = iter([OSError(116, "Stale file handle")] * 9)
    with pytest.raises(UserError, match="storage: Stale file handle; giving up"):
        supervisor.keep()


WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from launcher.record import write_json
from onediff.runs.folder import write_json as write_status
os.getpid = lambda: 4242  # two nodes, one process id
os.uname = lambda real=os.uname(), node=sys.argv[3]: type("Node", (), {"nodename": node})()
for number in range(100):
    write_json(Path(sys.argv[1]) / "a.json", {"node": sys.argv[3], "text": sys.argv[3] * (number % 97)})
    write_status(Path(sys.argv[1]) / "b.json", {"node": sys.argv[3], "text": sys.argv[3] * (number % 97)})
"""


def test_two_nodes_with_the_same_process_id_write_one_file(tmp_path):
    house = str(Path(__file__).parents[2])
    words = [sys.executable, "-c", WRITER, str(tmp_path), house]
    writers = [subprocess.Popen([*words, node], stderr=subprocess.PIPE, text=True) for node in ("n1", "n2" * 40)]
    for writer in writers:
        assert writer.communicate(timeout=300)[1] == "" and writer.returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["a.json", "b.json"]
