"""Runs on real Slurm daemons whose ranks, nodes or controller fail: who is blamed, and what is lost."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
from launch_runs import done_twice, undisturbed

pytestmark = pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing()))


def test_a_crashed_node_is_left_and_the_run_goes_on_elsewhere(launched, cluster):
    run = launched(seconds=0.3)
    run.submitted("--phases", "one")
    run.wait_step("one", 7)
    with cluster.crashed("node2"):
        run.wait_end("one")
    assert run.curve("one") == undisturbed(20) and done_twice(run, "one") <= 5
    attempts = run.record.attempts("one")
    assert attempts[-1].nodes == ["node1", "node3"]
    assert "node2" in attempts[0].blamed and "node failure" in attempts[0].reason


def test_ranks_that_outlive_their_node_for_slurm_do_not_write_beside_those_of_the_restart(launched, cluster):
    """Only slurmd dies: supervisor and ranks live on, while Slurm starts the job elsewhere."""
    run = launched(seconds=0.5, steps=300)  # more than its ranks make while Slurm misses the node
    run.profile["requeue"]["fence_seconds"] = 60
    run.submitted("--phases", "one", nodes="1")
    run.wait_step("one", 3)
    ((node,),) = [attempt.nodes for attempt in run.record.attempts("one")]
    try:
        cluster.on(node, "pkill", "-KILL", "slurmd")
        run.wait(lambda: len(run.record.attempts("one")) > 1, 300, "not started elsewhere")
        assert not cluster.on(node, "sh", "-c", "pgrep -f '[s]tandin_trainer.py' || true").strip(), "ranks live on"
        run.wait_step("one", run.record.attempts("one")[1].first_step + 2)
        run.curve("one")
        first, second = run.record.attempts("one")
        assert first.cause in ("vanished", "crash") and node not in second.nodes
    finally:
        cluster.crash(node)
        cluster.start_node(node)
        cluster.wait_until(
            lambda: node in cluster.sh("sinfo", "-h", "-N", "-t", "idle,alloc,mix", "-o", "%N"), 300, "away"
        )


def test_a_restarted_controller_is_not_noticed_neither_as_the_job_starts_nor_later(launched, cluster, tmp_path):
    run = launched(seconds=0.2)
    python = tmp_path / "python"
    waits = f'touch {tmp_path}/up; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; exec {sys.executable} "$@"'
    python.write_text(f"#!/bin/sh\n{waits}\n")
    python.chmod(0o755)
    run.profile |= {"python": str(python), "preflight": {"seconds": 20}}
    job = run.submitted("--phases", "one,two")["one"]
    run.wait((tmp_path / "up").exists, 300, "the job did not start")
    cluster.stop_controller()
    (tmp_path / "go").touch()
    log = run.run / "logs" / f"one-{job}.log"
    run.wait(lambda: "retrying" in log.read_text(), 300, "srun was not refused")
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
    run.wait(lambda: run.states()["two"]["state"] == "cancelled", 300, "the later phase is still queued")
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
    assert [attempt.action for attempt in attempts] == ["restart", "restart", "fail"]
    assert [attempt.last_step for attempt in attempts] == [6, 6, 6]
    assert run.states()["one"]["state"] == "failed" and "fault with code 1" in run.states()["one"]["why"]


def test_a_node_that_fails_its_preflight_is_excluded_beside_the_users_own_and_fewer_go_on(launched, cluster):
    cluster.on("node1", "fallocate", "-l", "300M", "/dev/shm/full")
    run = launched()
    run.profile |= {"scratch": "/dev/shm", "preflight": {"seconds": 60, "free_disk_gb": 0.4}}
    run.profile["sbatch"] = ["--exclude=node3"]
    try:
        job = run.submitted("--phases", "one")["one"]
        run.wait_end("one")
    finally:
        cluster.on("node1", "rm", "/dev/shm/full")
    first, second = run.record.attempts("one")
    assert first.cause == "bad node" and first.blamed == ["node1"], first
    assert "node1: /dev/shm: 0.2 GiB free, 0.4 required" in first.reason
    assert second.nodes == ["node2"] and second.cause == "finished", "of two wanted one is left, and the batch fits it"
    assert "ExcNodeList=node1,node3" in cluster.sh("scontrol", "show", "job", job)


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
    (figures,) = run.run.glob("launch/exits/one.2.all-reduce/node2.all-reduce.json")
    assert json.loads(figures.read_text())["world"] == 2


def test_a_long_evaluation_passes_and_hangs_are_ended_and_named(launched):
    """An evaluation may take more than twice `hang_minutes`; a rank that stops, and an evaluation that is stuck, may not."""
    faults = [{"phase": "one", "step": 8, "rank": 2, "do": "stop"}]
    run = launched(faults=faults, evaluations={"4": 19, "12": 600})
    run.profile["requeue"] = {"hang_minutes": 0.15, "start_minutes": 2, "section_minutes": {"evaluation": 0.4}}
    run.submitted("--phases", "one")
    run.wait((run.run / "evaluated-12").exists, 300, "the second evaluation did not begin")
    assert run.states()["one"]["at"].startswith("evaluation")
    run.wait_end("one")
    assert run.curve("one") == undisturbed(20)
    first, second, third = run.record.attempts("one")
    assert first.cause == second.cause == "hang" and third.cause == "finished", run.story()
    assert first.reason.startswith("no step for 0.15 minutes after step 7; the stacks of all ranks are in their logs")
    assert "rank 2 was in suffer (standin_trainer.py:" in first.reason and "the others in " in first.reason
    assert second.reason.startswith("evaluation, 3 of 40: nothing moved for 0.4 minutes after step 12")
    told = run.onediff("explain", "run").stdout
    assert second.reason in told and "hang 0m" in told and "evaluation 0m" in told, told
    stacks = (run.run / "logs" / "one.1.rank2.log").read_text()
    assert "Fatal Python error: Aborted" in stacks and " in suffer" in stacks and " in train" in stacks
    assert " in most" in (run.run / "logs" / "one.1.rank0.log").read_text()
