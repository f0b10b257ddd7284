"""`launcher.local` with real processes: variables, logs, ends, signals, and nothing left behind."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.local import LastWritten, rank_variables, run_local
from onediff.errors import UserError

RUN = """
import sys
from pathlib import Path
from launcher.local import run_local
sys.exit(run_local([sys.executable, "-c", Path(sys.argv[1]).read_text()], int(sys.argv[2]), log_dir=Path(sys.argv[3]),
                   name="part", grace=float(sys.argv[4])))
"""


def start(folder: Path, program: str, processes: int = 2, grace: float = 5, **options) -> subprocess.Popen:
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-c", RUN, str(folder / "program.py"), str(processes), str(folder / "logs"), str(grace)]
    return subprocess.Popen(command, text=True, **options)


def log(folder: Path, rank: int) -> str:
    return (folder / "logs" / f"part.rank{rank}.log").read_text()


def wait_for(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_rank_knows_its_place_and_meets_the_others(tmp_path):
    program = """
import os, socket
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
assert os.environ["LOCAL_RANK"] == str(rank) and os.environ["LOCAL_WORLD_SIZE"] == str(world)
address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if rank == 0:
    server = socket.create_server(address)
    print("heard", sorted(server.accept()[0].makefile().readline() for _ in range(world - 1)))
else:
    import time
    for _ in range(200):
        try:
            socket.create_connection(address).sendall(f"rank {rank}\\n".encode()); break
        except ConnectionRefusedError:
            time.sleep(0.02)
    print("sent")
"""
    process = start(tmp_path, program, processes=3, stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert out == log(tmp_path, 0) == "heard ['rank 1\\n', 'rank 2\\n']\n"
    assert log(tmp_path, 1) == log(tmp_path, 2) == "sent\n"


def test_the_log_of_a_crash_is_kept_when_the_ranks_start_again(tmp_path):
    for line in ("it crashed here", "all is well"):
        assert start(tmp_path, f"print({line!r})", stdout=subprocess.DEVNULL).wait(300) == 0
    for rank in (0, 1):
        first, again, second = filter(None, log(tmp_path, rank).splitlines())
        assert (first, second) == ("it crashed here", "all is well")
        assert again.startswith("onediff: started again at 20")


def test_threads_are_shared_out_unless_the_user_chose():
    cores = len(os.sched_getaffinity(0))
    assert rank_variables(1, {})[0]["OMP_NUM_THREADS"] == str(cores)
    assert rank_variables(10 * cores, {})[3]["OMP_NUM_THREADS"] == "1"
    assert rank_variables(2, {"OMP_NUM_THREADS": "7"})[1]["OMP_NUM_THREADS"] == "7"


def test_exit_code_of_the_first_rank_that_failed_and_its_last_lines(tmp_path):
    program = """
import os, sys, time
if os.environ["RANK"] == "1":
    time.sleep(0.2); print("onediff: error: no such shard", file=sys.stderr); sys.exit(2)
time.sleep(300)
"""
    began = time.monotonic()
    process = start(tmp_path, program, processes=3, grace=200, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert time.monotonic() - began < 60, "the sleeping ranks should have ended at SIGTERM"
    assert f"rank 1 ended with exit code 2; its log: {tmp_path}/logs/part.rank1.log" in errors
    assert "onediff: error: no such shard" in errors


def test_a_rank_that_a_signal_ended_is_a_failure_and_is_named(tmp_path):
    program = "import os, time\nif os.environ['RANK'] == '0': os.abort()\ntime.sleep(60)"
    process = start(tmp_path, program, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGABRT
    assert "rank 0 was ended by SIGABRT" in errors


def test_ranks_that_ignore_sigterm_are_killed_after_the_grace(tmp_path):
    program = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(0.5)
if os.environ["RANK"] == "1": sys.exit(7)
time.sleep(60)
"""
    process = start(tmp_path, program, grace=0.5, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.wait(300) == 7
    assert not alive(int(log(tmp_path, 0)))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_rank_which_stop_by_themselves(tmp_path, number):
    program = f"""
import signal, sys, time
def stop(number, frame):
    time.sleep(0.3); print("saved", flush=True); sys.exit(75)
signal.signal({int(number)}, stop)
print("ready", flush=True)
time.sleep(60)
"""
    process = start(tmp_path, program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: all((tmp_path / "logs" / f"part.rank{r}.log").exists() and log(tmp_path, r) for r in (0, 1)))
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 75
    assert log(tmp_path, 0) == log(tmp_path, 1) == "ready\nsaved\n"
    assert errors == "", "stopping on request is no failure to report"


def test_a_second_ctrl_c_ends_ranks_that_do_not_listen(tmp_path):
    program = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""
    process = start(tmp_path, program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: all((tmp_path / "logs" / f"part.rank{r}.log").exists() and log(tmp_path, r) for r in (0, 1)))
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(1.3)
    assert process.wait(300) == 128 + signal.SIGTERM


def test_nothing_is_left_when_the_launcher_itself_is_killed(tmp_path):
    program = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    process = start(tmp_path, program, stdout=subprocess.DEVNULL)
    wait_for(lambda: all((tmp_path / "logs" / f"part.rank{r}.log").exists() and log(tmp_path, r) for r in (0, 1)))
    pids = [int(log(tmp_path, rank)) for rank in (0, 1)]
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, pids)))


def test_workers_of_a_rank_that_died_go_with_it(tmp_path):
    program = """
import os, subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(worker.pid, flush=True)
os._exit(5)
"""
    process = start(tmp_path, program, processes=1, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.wait(300) == 5
    wait_for(lambda: not alive(int(log(tmp_path, 0))))


def test_a_progress_bar_sees_a_terminal_and_its_log_is_plain(tmp_path):
    program = """
import os, sys, time
print(f"terminal {os.get_terminal_size(2).columns}" if sys.stderr.isatty() else "file", file=sys.stderr)
for done in range(50):
    sys.stderr.write(f"\\r{done + 1}/50"); sys.stderr.flush()
sys.stderr.write("\\nend\\n")
"""
    (tmp_path / "program.py").write_text(program)
    pid, screen = pty.fork()
    if pid == 0:
        words = [str(tmp_path / "program.py"), "2", str(tmp_path / "logs"), "5"]
        os.execv(sys.executable, [sys.executable, "-c", "import os; os.system('stty cols 97')\n" + RUN, *words])
    seen = b""
    while True:
        try:
            part = os.read(screen, 65536)
        except OSError:
            break
        seen += part
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"terminal 97" in seen and len(re.findall(rb"\r\d+/50", seen)) == 50
    assert log(tmp_path, 0) == "terminal 97\n50/50\nend\n"
    assert log(tmp_path, 1).startswith("file\n"), "only rank 0 has the terminal"


def test_a_bar_cut_anywhere_becomes_one_line(tmp_path):
    text = b"first\r\n" + b"".join(b"\rbar %d" % n for n in range(30)) + b"\nlast"
    for size in (1, 2, 3, 7, 1000):
        with (tmp_path / "log").open("wb") as file:
            kept = LastWritten(file)
            for at in range(0, len(text), size):
                kept.write(text[at : at + size])
                assert len(kept.line) < 40 + size
            kept.close()
        assert (tmp_path / "log").read_bytes() == b"first\nbar 29\nlast\n"


def test_bad_requests_are_one_line(tmp_path):
    with pytest.raises(UserError, match="--processes 0"):
        run_local(["true"], 0, log_dir=tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match="no-such-command: cannot be started: No such file"):
        run_local(["no-such-command"], 2, log_dir=tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
