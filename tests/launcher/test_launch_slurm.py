"""Runs on real Slurm daemons with three nodes: a chain to its end, and every end that was asked for."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import slurm_cluster
import small_run
from launch_runs import HOUSE, done_twice, undisturbed

pytestmark = pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing()))


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
    assert "ignored, use the profile instead: SBATCH_EXPORT=NONE, SBATCH_NO_REQUEUE=1" in submitted.stderr
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
    assert finished.returncode == 0 and "all requested phases have finished" in finished.stdout
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
    assert f"{run}: this run already exists; continue it with --resume" in told and "\ncode 2\n" in told
    for phase in ("warm-up", "one"):
        assert json.loads((run / f"phase-{phase}" / "finished.json").read_text())["step"] == 1, told
    assert (run / "logs" / "train.rank3.log").is_file()


def test_a_warning_costs_no_step_and_sigterm_during_the_start_blames_nobody(launched, cluster):
    run = launched(seconds=0.2, faults=[{"phase": "one", "step": 0, "do": "wait"}])
    job = run.submitted("--phases", "one")["one"]
    run.wait(lambda: len(list(run.run.glob("fault-0-*"))) == 4, 300, "the ranks did not start")
    cluster.sh("scancel", "--signal=TERM", job)
    run.wait_step("one", 7)
    cluster.sh("scancel", "--signal=USR1", job)
    run.wait_end("one")
    assert run.curve("one") == undisturbed(20) and done_twice(run, "one") == 0
    start, first, second = run.record.attempts("one")
    assert (start.cause, start.action, start.blamed) == ("interrupted", "restart", []) and "SIGTERM" in start.reason
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
    run.wait(lambda: len(list(run.run.glob("fault-0-*"))) == 6, 300, "the ranks did not start")
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
    run.wait(lambda: len(run.record.attempts("one")) > 1, 300, "not queued again at the warning before the time limit")
    first = run.record.attempts("one")[0]
    assert (first.cause, first.action) == ("stopped", "requeue") and 0 < first.last_step < 120
    run.wait_step("one", first.last_step + 1)
    run.curve("one")
    assert done_twice(run, "one") == 0


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
