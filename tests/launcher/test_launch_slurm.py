"""The launcher on real Slurm daemons with three nodes: a chain to its end, and every end that is not the end."""

import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import slurm_cluster
import small_run
from launch_runs import HOUSE, Launched

from launcher.record import Record
from onediff.config.compose import load_run

GOLDEN = Path(__file__).with_name("golden")
pytestmark = pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing()))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = slurm_cluster.SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture
def launched(cluster, tmp_path):
    """Makes runs, and leaves no job behind."""
    yield lambda **wish: Launched(tmp_path / "home", cluster, **wish)
    cluster.sh("scancel", "--user=root", check=False)
    cluster.wait_until(lambda: not cluster.sh("squeue", "-h"), 90, "jobs are left")


def undisturbed(steps: int) -> dict[int, int]:
    value, curve = 0, {}
    for step in range(1, steps + 1):
        value = value * 31 % 1000003 + step
        curve[step] = value
    return curve


def done_twice(run: Launched, phase: str) -> int:
    """Steps that were lost and done again."""
    return len((run.run / f"steps-{phase}.txt").read_text().splitlines()) - len(run.curve(phase))


# What a shell inside salloc, under torchrun or mpirun, or of a user with habits may hold.
SHELL = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1",
    "PMI_SIZE": "1",
}
SHELL |= {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
SHELL |= {
    "SLURM_MEM_PER_CPU": "10",
    "SLURM_GPUS_PER_TASK": "1",
    "SLURM_CPU_BIND": "mask_cpu:0x1",
    "SLURM_JOB_ID": "999",
}
SHELL |= {"SLURM_STEP_NUM_TASKS": "1", "SLURM_EXPORT_ENV": "NONE", "SLURM_HINT": "nomultithread", "SLURM_OVERLAP": "1"}
SHELL |= {"SBATCH_PARTITION": "low", "SBATCH_NO_REQUEUE": "1", "SBATCH_TIMELIMIT": "1", "SBATCH_EXPORT": "NONE"}
SHELL |= {"SQUEUE_STATES": "SUSPENDED", "SQUEUE_FORMAT": "%i", "SINFO_PARTITION": "low", "SCANCEL_STATE": "SUSPENDED"}


def test_a_chain_runs_to_its_end_and_is_not_repeated_whatever_the_shell_holds(launched, cluster):
    run = launched(faults=[{"phase": "one", "step": 5, "do": "wait"}])
    run.profile["requeue"] = {"fence_seconds": 5}
    submitted = run.submit(env=SHELL)
    jobs = run.record.latest_jobs()
    assert "not heeded, the profile decides: SBATCH_EXPORT=NONE, SBATCH_NO_REQUEUE=1" in submitted.stderr
    assert list(jobs) == ["one", "two", "evaluate"]
    run.wait_step("one", 4)
    shown = cluster.sh("scontrol", "--oneliner", "show", "job", jobs["one"])
    assert all(word in shown for word in (" Requeue=1 ", " Partition=dev ", " TimeLimit=00:05:00 ")), shown
    again = run.submit()
    assert again.returncode == 2 and f"phase one is running as job {jobs['one']}" in again.stderr
    states = run.states()
    assert states["one"]["state"] == "running" and states["one"]["nodes"] == 2
    assert states["one"]["steps_total"] == 20 and states["one"]["seconds_left"] > 0
    assert states["two"]["state"] == "waiting" and states["two"]["why"] == "Dependency"
    for package in ("launcher", "onediff"):  # as in a checkout that is edited while the jobs wait
        (run.home / package).mkdir()
        (run.home / package / "__init__.py").write_text("raise SystemExit('what was edited since runs')")
    (run.run / "go").touch()
    run.wait_end("evaluate")
    for package in ("launcher", "onediff"):
        shutil.rmtree(run.home / package)
    assert run.curve("one") == run.curve("two") == undisturbed(20)
    assert {state["state"] for state in run.states().values()} == {"finished"}
    log = (run.run / "logs" / "one.1.rank3.log").read_text()
    assert log == "rank 3 of 4 from step 0 on node2\n"
    merged = (run.run / "logs" / f"one-{jobs['one']}.log").read_text()
    assert all(f"{rank}: rank {rank} of 4 from step 0 on node{rank // 2 + 1}" in merged for rank in range(4))
    assert "rank 2 of 4" in run.onediff("logs", "run", "--phase", "two", "--rank", "2").stdout
    assert "Everything has finished." in run.onediff("explain", "run").stdout
    finished = run.submit()
    assert finished.returncode == 0 and "every phase asked for has finished" in finished.stdout
    assert (run.run / "launch" / "code" / "onediff" / "errors.py").is_file()


def by_hand(cluster, folder: Path, *lines: str) -> str:
    """What a batch script of two nodes prints."""
    script, log = folder / "job.sh", folder / "job.log"
    script.write_text("\n".join(["#!/bin/bash", "export OMP_NUM_THREADS=1", *lines, ""]))
    options = ["--nodes=2", "--ntasks-per-node=2", f"--output={log}", f"--chdir={HOUSE}", "--wait"]
    cluster.sh("sbatch", *options, script, seconds=600, check=False)
    return log.read_text()


def training(run: Path, *words: str) -> str:
    return shlex.join([sys.executable, "-m", "onediff", "train", "configs/demo.yaml", *words, "--run", str(run)])


def test_a_script_written_by_hand_is_no_rank_and_its_tasks_are(cluster, tmp_path):
    train = training(tmp_path / "run", f"data.sets.singles={tmp_path / 'no'}")
    place = "from onediff.ranks import Ranks; print(*vars(Ranks.from_environment()).values())"
    srun = shlex.join(["srun", "--label", sys.executable, "-c", place])
    told = by_hand(cluster, tmp_path, f"{train} --processes 2; echo code $?", f"{train}; echo code $?", srun)
    assert told.count(f"{tmp_path / 'no'}/train: no such folder of shards") == told.count("code 2\n") == 2, told
    for rank in range(4):
        assert f"{rank}: {rank} {rank % 2} 4 2 node1 1" in told


@pytest.mark.long
def test_a_script_written_by_hand_trains_by_processes_and_by_srun(cluster, tmp_path):
    run, data = tmp_path / "run", small_run.render(tmp_path / "data", 20, 20)
    train = training(run, *small_run.overrides(data, 1, rows=8, **{"training.sample_captions": 0}))
    told = by_hand(
        cluster,
        tmp_path,
        f"{train} --phases warm-up --processes 2",
        f"{train} --phases warm-up; echo code $?",
        f"srun {train} --phases one --resume",
    )
    assert (run / "logs" / "process.rank1.log").is_file(), told
    assert f"{run}: this run has been started; go on with --resume" in told and "\ncode 2\n" in told
    for phase in ("warm-up", "one"):
        assert json.loads((run / f"phase-{phase}" / "finished.json").read_text())["step"] == 1, told
    assert (run / "logs" / "train.rank3.log").is_file()


def test_a_warning_costs_no_step_and_sigterm_during_the_start_blames_nobody(launched, cluster):
    run = launched(seconds=0.2, faults=[{"phase": "one", "step": 0, "do": "wait"}])
    job = run.submitted("--phases", "one")["one"]
    run.wait(lambda: len(list(run.run.glob("fault-0-*"))) == 4, 60, "the ranks did not start")
    cluster.sh("scancel", "--signal=TERM", job)
    run.wait_step("one", 7)
    cluster.sh("scancel", "--signal=USR1", job)
    run.wait_end("one")
    assert run.curve("one") == undisturbed(20) and done_twice(run, "one") == 0
    start, first, second = run.record.attempts("one")
    assert (start.cause, start.action, start.blamed) == ("interrupted", "requeue", []) and "SIGTERM" in start.reason
    assert (first.cause, first.action) == ("stopped", "requeue") and second.cause == "finished"
    assert second.first_step == first.last_step >= 7
    assert run.record.latest_jobs() == {"one": job}, "a requeue keeps the job, so that the chain holds"
    told = run.onediff("explain", "run").stdout
    assert "stopped on request with a checkpoint (SIGUSR1): queued again" in told
    assert run.states()["one"]["restarts"] == 2


def test_preemption_costs_no_step_and_during_the_start_blames_nobody(launched, cluster):
    run = launched(seconds=0.3, faults=[{"phase": "one", "step": 0, "do": "wait"}])
    run.profile["partition"] = "low"
    run.submitted("--phases", "one", "phases.one.global_batch=24", nodes="3")
    other = ["sbatch", "--partition=dev", "--exclusive", "--nodes=3", "--output=/dev/null", "--wrap=sleep 2"]
    run.wait(lambda: len(list(run.run.glob("fault-0-*"))) == 6, 60, "the ranks did not start")
    cluster.sh(*other)
    run.wait_step("one", 5)
    cluster.sh(*other)
    run.wait_end("one")
    assert run.curve("one") == undisturbed(20) and done_twice(run, "one") == 0
    attempts = run.record.attempts("one")
    assert [attempt.action for attempt in attempts] == ["requeue", "requeue", "done"]
    assert (attempts[0].cause, attempts[0].blamed) == ("interrupted", []), attempts[0]


def test_a_time_limit_costs_no_step(launched):
    # Slurm looks at limits every half minute, so the warning may come that late.
    run = launched(seconds=0.5, steps=120)
    run.profile |= {"time_limit": "1", "warn_seconds": 50}
    run.submitted("--phases", "one")
    run.wait(lambda: len(run.record.attempts("one")) > 1, 240, "not queued again at the warning before the time limit")
    first = run.record.attempts("one")[0]
    assert (first.cause, first.action) == ("stopped", "requeue") and 0 < first.last_step < 120
    run.wait_step("one", first.last_step + 1)
    run.curve("one")
    assert done_twice(run, "one") == 0


def test_a_killed_rank_costs_one_checkpoint_interval_at_most(launched):
    run = launched(faults=[{"phase": "two", "step": 13, "rank": 3, "do": "kill"}])
    run.submitted()
    run.wait_end("evaluate")
    assert run.curve("two") == undisturbed(20) and 0 < done_twice(run, "two") <= 5
    first, second = run.record.attempts("two")
    assert first.cause == "crash" and first.exit_code == 128 + signal.SIGKILL and second.cause == "finished"
    assert "rank 3 on node2 was ended by SIGKILL" in first.reason and first.blamed == ["node2"]
    assert "rank 3 on node2 was ended by SIGKILL" in run.onediff("explain", "run").stdout


def test_a_crashed_node_is_left_and_the_run_goes_on_elsewhere(launched, cluster):
    run = launched(seconds=0.3)
    run.submitted("--phases", "one")
    run.wait_step("one", 7)
    try:
        cluster.crash("node2")
        run.wait_end("one")
    finally:
        cluster.start_node("node2")
        cluster.wait_until(lambda: len(cluster.idle_nodes()) == 3, 90, "node2 did not come back")
    assert run.curve("one") == undisturbed(20) and done_twice(run, "one") <= 5
    attempts = run.record.attempts("one")
    assert attempts[-1].nodes == ["node1", "node3"]
    assert "node2" in attempts[0].blamed and "node failure" in attempts[0].reason


def test_ranks_that_outlive_their_node_for_slurm_do_not_write_beside_those_of_the_restart(launched, cluster):
    """Only slurmd dies: supervisor and ranks live on, while Slurm starts the job elsewhere."""
    run = launched(seconds=0.5, steps=60)
    run.profile["requeue"]["fence_seconds"] = 60
    run.submitted("--phases", "one", nodes="1")
    run.wait_step("one", 3)
    ((node,),) = [attempt.nodes for attempt in run.record.attempts("one")]
    try:
        cluster.on(node, "pkill", "-KILL", "slurmd")
        run.wait(lambda: len(run.record.attempts("one")) > 1, 240, "not started elsewhere")
        assert not cluster.on(node, "sh", "-c", "pgrep -f '[s]tandin_trainer.py' || true").strip(), "ranks live on"
        run.wait_step("one", run.record.attempts("one")[1].first_step + 2)
        run.curve("one")
        first, second = run.record.attempts("one")
        assert first.cause in ("vanished", "crash") and node not in second.nodes
    finally:
        cluster.crash(node)
        cluster.start_node(node)
        cluster.wait_until(
            lambda: node in cluster.sh("sinfo", "-h", "-N", "-t", "idle,alloc,mix", "-o", "%N"), 90, "away"
        )


def test_a_restarted_controller_is_not_noticed_neither_as_the_job_starts_nor_later(launched, cluster, tmp_path):
    run = launched(seconds=0.2)
    python = tmp_path / "python"
    waits = f'touch {tmp_path}/up; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; exec {sys.executable} "$@"'
    python.write_text(f"#!/bin/sh\n{waits}\n")
    python.chmod(0o755)
    run.profile |= {"python": str(python), "preflight": {"seconds": 20}}
    job = run.submitted("--phases", "one,two")["one"]
    run.wait((tmp_path / "up").exists, 60, "the job did not start")
    cluster.stop_controller()
    (tmp_path / "go").touch()
    log = run.run / "logs" / f"one-{job}.log"
    run.wait(lambda: "trying again" in log.read_text(), 90, "srun was not refused")
    cluster.start_controller()
    run.wait_step("one", 5)
    cluster.stop_controller()
    began = time.monotonic()
    assert run.states()["one"]["step"] >= 5, "the folder tells without the controller"
    assert time.monotonic() - began < 90
    cluster.start_controller()
    run.wait_end("two")
    assert run.curve("one") == run.curve("two") == undisturbed(20)
    (attempt,) = run.record.attempts("one")
    assert attempt.cause == "finished" and not attempt.blamed


SBATCH = """#!/bin/sh
case "$*" in *--test-only*) exec {real} "$@";; esac
echo "Welcome to the cluster: 3 nodes."
sleep "${{SLOW:-0}}"
case "$LOST:$*" in
    refused:*two.sbatch*) echo "sbatch: error: Batch job submission failed: Unable to contact slurm controller" >&2; exit 1;;
    answer:*two.sbatch*) {real} "$@" > /dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1;;
esac
{real} "$@"
echo "Have a nice day."
"""


def test_no_job_is_lost_or_doubled_by_a_banner_a_lost_answer_or_two_submissions_at_once(launched, cluster, tmp_path):
    run, tools = launched(), tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH.format(real=shutil.which("sbatch")))
    (tools / "scancel").write_text(f'#!/bin/sh\n[ "$LOST" = refused ] && exit 1\nexec {shutil.which("scancel")} "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    path = {"PATH": f"{tools}:{cluster.env['PATH']}"}
    run.profile["sbatch"] = ["--hold"]

    def queue() -> list[str]:
        return sorted(cluster.sh("squeue", "-h", "--format=%i").split())

    # Two at once: one of them is refused, whichever comes second.
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: run.submit(env={**path, "SLOW": "2"}), range(2)))
    assert sorted(done.returncode for done in both) == [0, 2], [done.stderr for done in both]
    refused = next(done for done in both if done.returncode)
    assert "another process is submitting it" in refused.stderr or "is pending as job" in refused.stderr
    assert queue() == sorted(run.record.latest_jobs().values()) and len(queue()) == 3
    # Nor does a folder without its notes take the run to be unknown.
    (run.run / "launch" / "jobs.json").rename(tmp_path / "jobs.json")
    assert "is pending as job" in run.submit(env=path).stderr
    assert run.onediff("cancel", "run", "--now").returncode == 0 and queue() == []
    done = run.submit(env={**path, "LOST": "answer"})
    assert done.returncode == 0, done.stderr
    assert queue() == sorted(run.record.latest_jobs().values()) and len(queue()) == 3
    assert run.onediff("cancel", "run", "--now").returncode == 0 and queue() == []
    # The controller goes away in the middle of the chain, so that its beginning cannot be taken back either.
    done = run.submit(env={**path, "LOST": "refused"})
    assert done.returncode == 2 and "two may be queued all the same" in done.stderr and len(queue()) == 1
    assert f"not taken back: one (job {queue()[0]}), two (job not known)" in done.stderr
    assert run.states()["one"]["state"] == "waiting" and "is pending as job" in run.submit().stderr
    assert run.onediff("cancel", "run", "--now").returncode == 0 and queue() == []
    assert "phase two was being queued" in run.submit().stderr


def test_an_option_that_srun_does_not_know_ends_the_run_and_blames_no_node(launched, cluster):
    run = launched()
    run.profile["srun"] = ["--mem-bnid=none"]
    job = run.submitted("--phases", "one")["one"]
    run.wait_end("one", 60)
    (attempt,) = run.record.attempts("one")
    assert (attempt.cause, attempt.action, attempt.blamed) == ("refused", "fail", [])
    assert "unrecognized option '--mem-bnid=none'" in run.onediff("explain", "run").stdout
    assert "ExcNodeList=(null)" in cluster.sh("scontrol", "show", "job", job)


@pytest.mark.parametrize(("code", "words"), [(2, "shards/x.tar: no such shard"), (3, "loss is NaN at step 4")])
def test_what_a_restart_cannot_mend_is_not_restarted(launched, code, words):
    run = launched(
        faults=[{"phase": "one", "step": 4 if code == 3 else 1, "rank": 1, "do": f"exit {code}", "once": False}]
    )
    jobs = run.submitted()
    run.wait_end("one")
    (attempt,) = run.record.attempts("one")
    assert attempt.action == "fail" and attempt.exit_code == code and words in attempt.reason
    run.wait(lambda: run.states()["two"]["state"] == "cancelled", 90, "the later phase is still queued")
    assert not run.cluster.sh("squeue", "-h", f"--jobs={jobs['two']},{jobs['evaluate']}")
    assert (
        words in run.onediff("explain", "run").stdout
        and "onediff launch resume" in run.onediff("explain", "run").stdout
    )


def test_a_crash_loop_ends(launched):
    run = launched(faults=[{"phase": "one", "step": 7, "rank": 0, "do": "exit 1", "once": False}])
    run.profile["requeue"] |= {"restarts_without_progress": 1, "node_failures": 9}
    run.submitted("--phases", "one")
    run.wait_end("one")
    attempts = run.record.attempts("one")
    assert [attempt.action for attempt in attempts] == ["requeue", "requeue", "fail"]
    assert [attempt.last_step for attempt in attempts] == [6, 6, 6]
    assert run.states()["one"]["state"] == "failed" and "fault with code 1" in run.states()["one"]["why"]


def test_a_node_that_fails_its_preflight_is_excluded(launched, cluster):
    cluster.on("node1", "fallocate", "-l", "300M", "/dev/shm/full")
    run = launched()
    run.profile |= {"scratch": "/dev/shm", "preflight": {"seconds": 60, "free_disk_gb": 0.4}}
    try:
        job = run.submitted("--phases", "one")["one"]
        run.wait_end("one")
    finally:
        cluster.on("node1", "rm", "/dev/shm/full")
    first, second = run.record.attempts("one")
    assert first.cause == "bad node" and first.blamed == ["node1"], first
    assert "node1: /dev/shm: 0.2 GiB free, 0.4 wanted" in first.reason
    assert second.nodes == ["node2", "node3"] and second.cause == "finished"
    assert "ExcNodeList=node1" in cluster.sh("scontrol", "show", "job", job)


def test_a_node_whose_ranks_cannot_sum_is_excluded(launched, cluster):
    """Its torch is broken, as in a half-installed container: the sum of its own ranks fails before any training."""
    libraries = Path(importlib.util.find_spec("torch").origin).with_name("lib")
    cluster.on("node1", "mount", "-t", "tmpfs", "tmpfs", libraries)
    run = launched()
    run.profile["preflight"] = {"seconds": 60, "all_reduce": True}
    try:
        run.submitted("--phases", "one")
        run.wait_end("one")
    finally:
        cluster.on("node1", "umount", libraries)
    first, second = run.record.attempts("one")
    assert first.cause == "bad node" and first.blamed == ["node1"], first
    assert first.reason.startswith("pre-flight: node1: all-reduce: OSError: ") and "libtorch" in first.reason
    assert second.nodes == ["node2", "node3"] and second.cause == "finished"
    (figures,) = run.run.glob("launch/exits/one.2.all-reduce/node2.figures.json")
    assert json.loads(figures.read_text())["world"] == 2


def test_a_hang_is_noticed_and_its_stacks_are_in_the_log(launched):
    run = launched(faults=[{"phase": "one", "step": 8, "rank": 2, "do": "stop"}])
    run.profile["requeue"] = {"hang_minutes": 0.2, "start_minutes": 2, "fence_seconds": 5}
    run.submitted("--phases", "one")
    run.wait_end("one")
    first, second = run.record.attempts("one")
    assert first.cause == "hang" and "no step for 0.2 minutes after step 7" in first.reason
    assert second.cause == "finished" and run.curve("one") == undisturbed(20)
    stacks = (run.run / "logs" / "one.1.rank2.log").read_text()
    assert "Fatal Python error: Aborted" in stacks and " in suffer" in stacks and " in train" in stacks
    assert " in most" in (run.run / "logs" / "one.1.rank0.log").read_text()


def test_cancel_and_resume_on_more_nodes(launched):
    run = launched(faults=[{"phase": "one", "step": 6, "do": "wait"}])
    run.profile["requeue"] = {"fence_seconds": 5}
    run.submitted("--phases", "one,two")
    run.wait_step("one", 5)
    done = run.onediff("cancel", "run")
    assert done.returncode == 0 and "cancelled: one (job" in done.stdout and "two (job" in done.stdout
    (attempt,) = run.record.attempts("one")
    assert attempt.cause == "cancelled" and run.states()["one"]["state"] == "cancelled"
    resumed = run.onediff("resume", "run", "--nodes", "1")
    assert resumed.returncode == 0, resumed.stderr
    run.wait_end("two")
    assert run.curve("one") == undisturbed(20) and done_twice(run, "one") == 0
    assert len(run.record.attempts("one")[1].nodes) == 1


def test_a_range_of_nodes_takes_what_can_share_the_batch(launched, cluster):
    run = launched(steps=6)
    run.profile["sbatch"] = ["--export=NONE"]  # the profile's variables reach the ranks all the same
    run.submitted("--phases", "one", nodes="1-3")
    run.wait_end("one")
    assert run.curve("one") == undisturbed(6)
    (attempt,) = run.record.attempts("one")
    assert attempt.tasks == 4 and len(attempt.nodes) == 2, "six ranks cannot share a batch of eight, four can"


def test_wrong_submissions_are_one_line_and_queue_nothing(launched, cluster, tmp_path):
    run = launched()
    good_profile, good_config = dict(run.profile), dict(run.config)
    (tmp_path / "file").write_text("")

    def refused(words: str, *options: str, nodes: str = "2", profile=None, config=None, env=None) -> None:
        run.profile, run.config = {**good_profile, **(profile or {})}, {**good_config, **(config or {})}
        run.write()
        base = ["submit", "run.yaml", "--run", "run", "--profile", str(run.home / "profile.yaml"), "--nodes", nodes]
        done = run.onediff(*base, *options, env=env)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert done.stderr.count("\n") == 1 and words in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr and cluster.sh("squeue", "-h") == ""

    refused("no such partition (did you mean 'low'?)", profile={"partition": "lwo"})
    refused("nodes of partition dev have 2 GPUs", profile={"gpus_per_node": 4})
    refused("cannot share a global batch of 8", nodes="3")
    refused("allows 120 minutes at most", profile={"time_limit": "3:00:00"})
    refused("cannot be written: Not a directory", "--run", str(tmp_path / "file" / "run"))
    refused("not on the path", env={"PATH": "/nowhere"})
    refused("unknown key 'partiton' (did you mean 'partition'?)", profile={"partiton": "dev"})
    refused("partition dev has 3 nodes", nodes="4")
    refused("no phase 'tow' (did you mean 'two'?)", "--phases", "tow")
    refused("needs phase one, which has not finished", "--phases", "two")
    refused("optimizer.lr", "optimizer.lr=abc")
    refused("profile 'plian': no such file (did you mean 'plain'?)", "--profile", "plian")
    refused(
        "no such folder of shards", config={"data": {"base": "data/scenes", "sets": {"pairs": "/no", "singles": "/no"}}}
    )
    refused("such as 24:00:00", profile={"time_limit": "tomorrow"})
    refused("nodes of partition dev have 16", profile={"cpus_per_task": 9})
    refused("expected a count such as 8", nodes="two")
    refused("Invalid feature specification; what was asked for stands at the top of", profile={"constraint": "h100"})


def test_a_sweep_keeps_to_its_cap_and_ends_in_a_table(launched, cluster):
    run = launched(seconds=0.05, steps=6)
    values = "optimizer.lr=1e-3,2e-3,3e-3"
    words = ["run.yaml", values, "--profile", str(run.home / "profile.yaml"), "--nodes", "1", "--phases", "one"]
    done = run.onediff("sweep", *words, "--at-most", "2")
    assert done.returncode == 0, done.stderr
    sweep = run.home / "runs" / "tiny-sweep"
    runs = [Record(sweep / f"lr-{value}") for value in ("1e-3", "2e-3", "3e-3")]
    for record in runs:
        assert load_run(str(record.run / "config.yaml")).tracking.sweep == "tiny-sweep"
    run.wait(lambda: cluster.sh("squeue", "-h") == "", 120, "the sweep did not end")
    spans = [(attempt.started, attempt.ended) for record in runs for attempt in record.attempts("one")]
    assert len(spans) == 3 and all(record.finished("one") for record in runs), spans
    assert max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans) <= 2
    table = (sweep / "table.txt").read_text()
    assert table.startswith("run ") and all(f"lr-{value}" in table for value in ("1e-3", "2e-3", "3e-3")), table
    states = json.loads(run.onediff("status", "runs/tiny-sweep", "--json").stdout)
    assert [rows[0]["state"] for rows in states.values()] == ["finished"] * 3
    refused = run.onediff("sweep", *words[:1], "optimizer.lr=1e-4,x", *words[2:])
    assert refused.returncode == 2 and cluster.sh("squeue", "-h") == ""


def test_scripts_for_1_2_and_128_nodes_are_taken_by_slurm(cluster):
    for script in sorted(GOLDEN.glob("*.sbatch")):
        done = subprocess.run(["sbatch", "--test-only", script], env=cluster.env, capture_output=True, text=True)
        assert done.returncode == 0 and "to start at" in done.stderr, done.stderr


def test_512_nodes_can_be_submitted_and_followed(launched, cluster):
    """Held, since the nodes do not exist: what is asked of Slurm, and what status says."""
    run = launched()
    run.profile["sbatch"] = ["--hold"]
    run.profile |= {"partition": "p5", "gpus_per_node": 8, "gpu_type": "h100", "cpus_per_task": 24, "tasks_per_node": 8}
    phase = {"mix": {"pairs": 1}, "steps": 20, "global_batch": 8192, "micro_batch": 1}
    run.config["phases"] = {"one": phase}
    job = run.submitted(nodes="512")["one"]
    shown = cluster.sh("scontrol", "--oneliner", "show", "job", job)
    assert "NumNodes=512" in shown and "NumTasks=4096" in shown and "TresPerNode=gres:gpu:h100:8" in shown, shown
    assert (run.states()["one"]["state"], run.states()["one"]["why"]) == ("waiting", "JobHeldUser")
    assert run.onediff("cancel", "run", "--now").returncode == 0
    too_many = run.submit("--run", "other", nodes="1024")
    assert too_many.returncode == 2 and "partition p5 has 512 nodes" in too_many.stderr


def test_doctor_sees_the_cluster_from_its_nodes(launched, cluster, tmp_path):
    run = launched()
    run.profile["tasks_per_node"] = 1
    run.write()
    words = ["doctor", "--profile", str(run.home / "profile.yaml"), "--data", str(run.home / "data")]
    done = run.onediff(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BAD" not in done.stdout and "2: node1, node2" in done.stdout and "written by 2 of 2 nodes" in done.stdout
    assert "ms there and back" in done.stdout and "node2 → node1" in done.stdout and "differs by" in done.stdout
    assert "dev: 3 nodes, 2 GPUs and 16 CPUs a node, 120 minutes at most" in done.stdout
    for name in ("slurm-wlm 2", "preemption REQUEUE", "proctrack/linuxproc", "open between all nodes"):
        assert name in done.stdout, done.stdout
    assert re.search(r"ok +all-reduce +2 ranks on 2 nodes \(cpu\): \d+ µs for one number, [\d,]+ MB/s", done.stdout)
    assert not list(run.home.glob(".onediff-doctor-*"))
    bad = run.onediff(*words[:-1], "/nowhere")
    assert bad.returncode == 1 and "BAD  node1" in bad.stdout and "/nowhere: no shards to be seen" in bad.stdout
    run.profile["partition"] = "lwo"
    bad = run.onediff(*words)
    assert bad.returncode == 1 and "did you mean 'low'" in bad.stdout


def test_a_controller_that_does_not_answer_is_one_line(launched, cluster):
    run = launched()
    cluster.stop_controller()
    try:
        done = run.submit()
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("onediff: error: s"), done.stderr
    finally:
        cluster.start_controller()
        cluster.wait_until(lambda: len(cluster.idle_nodes()) == 3, 90, "nodes did not register again")


def test_names_of_users_are_harmless_or_refused(launched, cluster, tmp_path):
    run = launched()
    canary = tmp_path / "canary"
    hostile = f"$(touch {canary}) `touch {canary}` ; touch {canary} ' \" \\ #"
    run.profile["environment"]["NOTE"] = hostile
    run.profile["command"] = [
        "/bin/sh",
        "-c",
        'printf %s "$NOTE" > "$0/note"; exec "$@"',
        str(tmp_path),
        *run.profile["command"],
    ]
    run.home = tmp_path / "a home (with; spaces & more)"
    run.home.mkdir()
    run.run = run.home / "run"
    run.record = type(run.record)(run.run)
    run.submitted("--phases", "one", "--comment", "for you & me; touch it", nodes="1")
    run.wait_end("one")
    assert run.record.finished("one"), run.story()
    assert (tmp_path / "note").read_text() == hostile
    for option, name in (
        ("--comment", f"$(touch {canary})"),
        ("--comment", "two\n#SBATCH --nodes=9"),
        ("--run", str(tmp_path / f"$(touch {canary.name})")),
        ("--run", str(tmp_path / "line\nbreak")),
        ("--run", str(tmp_path / 'qu"ote')),
        ("--run", str(tmp_path / "%j")),
    ):
        done = run.submit(option, name)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, (name, done.stdout, done.stderr)
    for name in ("a b", "$(touch x)", "x'y", "line\nbreak", "-rf", ""):
        done = run.submit(f"name={name!r}")
        assert done.returncode == 2 and "plain name" in done.stderr, (name, done.stderr)
    assert not canary.exists() and not list(Path(tmp_path).rglob("x"))
    assert cluster.sh("squeue", "-h") == ""
