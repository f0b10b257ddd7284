"""Ranks, all ranks of a node, and nodes that die: the run goes on inside its job, which never leaves RUNNING."""

import json
import os
import re
import signal
import subprocess

import pytest
import slurm_cluster
from launch_runs import done_twice, undisturbed

pytestmark = pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing()))


def restarts_of_slurm(run, job: str) -> int:
    shown = run.cluster.sh("scontrol", "--oneliner", "show", "job", job)
    return int(shown.split(" Restarts=")[1].split()[0])


def memory(cluster, node: str) -> list[str]:
    """Folders of copies in the memory of a node."""
    return cluster.on(node, "sh", "-c", "ls -d /dev/shm/onediff-* 2>/dev/null || true").split()


def test_a_killed_rank_and_then_all_ranks_of_its_node_are_started_again_in_the_same_job(launched, cluster):
    faults = [{"phase": "one", "step": 8, "rank": 3, "do": "kill"}, {"phase": "one", "step": 14, "do": "wait"}]
    run = launched(faults=faults)
    run.profile["requeue"] |= {"node_failures": 9}
    run.config["training"] = {"peer_copies": {"repeat_at_most": 4}}
    job = run.submitted("--phases", "one")["one"]
    run.wait(lambda: len(list(run.run.glob("fault-1-*"))) == 4, 120, "the ranks did not come to step 14")
    cluster.on("node2", "pkill", "-KILL", "-f", "[s]tandin_trainer.py")
    run.wait_end("one")
    assert run.curve("one") == undisturbed(20)
    assert 0 < done_twice(run, "one") <= 4, "each death costs what was done since the last copy in memory"
    cluster.wait_until(lambda: not memory(cluster, "node1") + memory(cluster, "node2"), 60, "copies outlive the job")
    first, second, third = run.record.attempts("one")
    assert [one.action for one in (first, second, third)] == ["restart", "restart", "done"], run.story()
    assert first.reason.startswith("rank 3 on node2 was ended by SIGKILL") and first.exit_code == 128 + signal.SIGKILL
    assert "ended without a trace" in second.reason and third.nodes == ["node1", "node2"]
    assert (first.blamed, second.blamed) == (["node2"], []), "what watches over the ranks was killed, too; srun was not"
    assert restarts_of_slurm(run, job) == 0
    checked = sorted(path.stem for path in run.run.glob("launch/exits/one.2.preflight/*"))
    assert checked == ["node2"], "only the blamed node is checked again"
    assert first.failed < first.ended < second.moved
    told = run.onediff("explain", "run").stdout
    assert (
        "rank 3 on node2 was ended by SIGKILL (the kernel does this when memory runs out): restarted in the job" in told
    )


def test_a_crashed_node_is_replaced_by_the_spare_without_leaving_the_job(launched, cluster):
    run = launched(seconds=0.3, every=100)
    run.config["training"] = {"peer_copies": {"repeat_at_most": 4}}
    job = run.submitted("--phases", "one", "--spares", "1")["one"]
    run.wait_step("one", 7)
    assert run.record.attempts("one")[0].nodes == ["node1", "node2"], "the spare waits"
    assert len(memory(cluster, "node1")) == 1
    with cluster.crashed("node2"):
        run.wait_end("one")
    assert run.curve("one") == undisturbed(20) and done_twice(run, "one") <= 2, "there is no checkpoint on the disk"
    first, second = run.record.attempts("one")
    assert (first.blamed, first.action) == (["node2"], "restart") and "node failure" in first.reason, run.story()
    assert second.nodes == ["node1", "node3"] and second.job == first.job == job
    assert restarts_of_slurm(run, job) == 0


SLOWED = "while :; do pkill -STOP -f '[s]tandin_tr'; sleep 0.5; pkill -CONT -f '[s]tandin_tr'; sleep 0.1; done"


def test_a_slow_node_is_replaced_by_the_spare_at_a_checkpoint(launched, cluster):
    run = launched(seconds=0.1, steps=400, every=1000, compare=4)
    run.profile["requeue"] |= {"slow_share": 2.0, "slow_times": 2}
    run.config["training"] = {"peer_copies": {"repeat_at_most": 4}}
    job = run.submitted("--phases", "one", "--spares", "1")["one"]
    run.wait_step("one", 5)
    inside = ["nsenter", "-t", str(cluster.init_pid("node2")), "-n", "-u", "-i", "-m", "-p"]
    slowed = subprocess.Popen([*inside, "sh", "-c", SLOWED], start_new_session=True)
    try:
        run.wait(lambda: len(run.record.attempts("one")) > 1, 120, "the slow node was not replaced")
    finally:
        os.killpg(slowed.pid, signal.SIGKILL)
        slowed.wait()
    first, second = run.record.attempts("one")
    assert (first.cause, first.blamed, first.action) == ("slow node", ["node2"], "restart"), run.story()
    run.wait_step("one", first.last_step + 2)
    assert run.record.attempts("one")[1].nodes == ["node1", "node3"] and second.job == job
    assert done_twice(run, "one") == 0, "it stopped with a checkpoint"
    assert re.search(r"on node2 was at least \d+ % slower than the median rank", run.onediff("explain", "run").stdout)
    assert memory(cluster, "node1") and memory(cluster, "node3")
    cluster.sh("scancel", job)
    cluster.wait_until(lambda: not any(memory(cluster, node) for node in cluster.names), 60, "copies outlive scancel")


def test_fewer_nodes_go_on_where_the_user_said_that_they_will_do(launched, cluster):
    cluster.on("node3", "fallocate", "-l", "300M", "/dev/shm/full")
    run = launched()
    run.profile |= {"scratch": "/dev/shm", "preflight": {"seconds": 60, "free_disk_gb": 0.4}}
    try:
        job = run.submitted("--phases", "one", "phases.one.global_batch=12", nodes="2-3")["one"]
        run.wait_end("one")
    finally:
        cluster.on("node3", "rm", "/dev/shm/full")
    first, second = run.record.attempts("one")
    assert (first.cause, first.blamed, first.action) == ("bad node", ["node3"], "restart"), run.story()
    assert second.nodes == ["node1", "node2"] and run.curve("one") == undisturbed(20)
    assert restarts_of_slurm(run, job) == 0
    assert json.loads((run.run / "launch" / "plan.json").read_text())["phases"]["one"]["nodes"] == [2, 3]
