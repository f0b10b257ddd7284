"""One rank as srun starts it: its note, its log, and a warning that comes at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from launcher.outcome import judge

PLACE = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "9",
}


def start(folder: Path, program: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "launcher.task", str(folder / "notes"), str(folder / "logs" / "one.1"), "-"]
    env = {**os.environ, **PLACE, "SLURMD_NODENAME": "n7", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*words, sys.executable, "-c", program]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)


def note(folder: Path) -> dict:
    return json.loads((folder / "notes" / "3.json").read_text())


def wait_log(folder: Path, word: str) -> None:
    log, end = folder / "logs" / "one.1.rank3.log", time.monotonic() + 300
    while not log.exists() or word not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_note_and_log(tmp_path):
    process = start(tmp_path, "import os, sys; print(os.environ['RANK'], os.environ['MASTER_PORT']); sys.exit(7)")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 7 and out == "3 9\n"
    found = note(tmp_path)
    assert (found["rank"], found["node"], found["code"], found["last"]) == (3, "n7", 7, ["3 9"])
    assert Path(found["log"]).read_text() == "3 9\n"


def test_stopping_on_request_is_hidden_from_srun_and_death_by_a_signal_is_not(tmp_path):
    process = start(tmp_path, "import sys; sys.exit(75)")
    assert process.wait(300) == 0 and note(tmp_path)["code"] == 75
    process = start(tmp_path, "import os; os.kill(os.getpid(), 9)")
    assert process.wait(300) == 137 and note(tmp_path)["code"] == 137


def test_a_signal_from_outside_during_imports_is_no_fault(tmp_path):
    process = start(tmp_path, "import time; print('importing', flush=True); time.sleep(20)")
    wait_log(tmp_path, "importing")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(300) == 143
    told = note(tmp_path)
    assert told["told"] == "SIGTERM"
    outcome = judge([told, {**told, "rank": 2}], ["n6", "n7"], 4, False, {}, lambda nodes: [], ended=True)
    assert (
        outcome.cause == "interrupted"
        and not outcome.blamed
        and "ended by SIGTERM from Slurm or a person" in outcome.reason
    )
    own = {**told, "rank": 2, "code": 1, "told": None, "last": ["KeyError: 'x'"]}
    assert judge([told, own], ["n7"], 2, False, {}).blamed == ("n7",), "srun's SIGTERM follows a fault of its own"


def test_a_warning_during_imports_is_not_lost(tmp_path):
    program = """
import signal, sys, time
print("importing", flush=True)
time.sleep(1)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
time.sleep(20)
"""
    process = start(tmp_path, program)
    wait_log(tmp_path, "importing")
    os.killpg(process.pid, signal.SIGUSR1)  # as Slurm does: to every process of the task
    assert process.wait(300) == 0 and note(tmp_path)["code"] == 75


def test_a_warning_does_not_end_a_rank_on_its_way_out(tmp_path):
    program = """
import signal, sys, time
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
print("ready", flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(0.5)
signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # as Python does while it ends
time.sleep(4)
sys.exit(75)
"""
    process = start(tmp_path, program)
    wait_log(tmp_path, "ready")
    os.killpg(process.pid, signal.SIGUSR1)
    assert process.wait(300) == 0 and note(tmp_path)["code"] == 75


def test_a_rank_of_an_attempt_that_was_taken_over_is_ended(tmp_path):
    process = start(tmp_path, "import time\nfor n in range(1000): print('step', n, flush=True); time.sleep(0.1)")
    wait_log(tmp_path, "step 3")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "superseded").touch()
    assert process.wait(300) == 137 and note(tmp_path)["code"] == 137
