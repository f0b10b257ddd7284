"""The real training on real daemons: a rank, all ranks of a node and a node die, and the job never leaves RUNNING."""

import json
import re

import pytest
import slurm_cluster
import small_run
from launch_runs import Launched
from mlflow import MlflowClient

from launcher.goodput import recoveries

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
]
STEPS, EVERY = 40, 2
RANK = "^[^ ]+ [^ ]+/launch/code onediff train"  # of the processes of a node: the ranks, not what started them


def test_deaths_cost_what_was_done_since_the_last_copy_in_memory_and_the_losses_are_those_of_a_run_here(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(small_run, "SECONDS", 1200)
    data = small_run.render(tmp_path / "data")
    more = {"phases.warm-up.micro_batch": 1, "training.sample_captions": 0, "phases.warm-up.checkpoint_every": 1000}
    more["training.peer_copies"] = f"{{every: {EVERY}}}"
    phase = ["--phases", "warm-up"]
    local = small_run.train(tmp_path / "local", data, STEPS, "--processes", "4", *phase, **more)
    assert local.returncode == 0, local.stderr[-3000:]
    wanted = small_run.metrics(tmp_path / "local", "warm-up")

    run = Launched(tmp_path / "home", cluster)
    run.profile |= {"tasks_per_node": 2, "command": None, "environment": {"OMP_NUM_THREADS": "1"}, "warn_seconds": 60}
    run.profile |= {"time_limit": "60", "preflight": {"seconds": 120}}
    run.profile["requeue"] = {"hang_minutes": 5, "start_minutes": 10, "node_failures": 9}
    run.config = {"base": "demo"}
    job = run.submitted(*phase, *small_run.overrides(data, STEPS, **more), "--spares", "1")["warm-up"]
    deaths = (
        lambda: cluster.on("node2", "pkill", "-KILL", "-o", "-f", RANK),
        lambda: cluster.on("node2", "pkill", "-KILL", "-f", RANK),
        lambda: cluster.crash("node2"),
    )
    try:
        for number, die in enumerate(deaths, start=1):
            before = run.record.attempts("warm-up")[-1].first_step if number > 1 else 0
            run.wait_step("warm-up", before + 6, 900)
            die()
            run.wait(lambda n=number: len(run.record.attempts("warm-up")) > n, 300, "not started again")
        run.wait_end("warm-up", 900)
    finally:
        cluster.start_node("node2")
        cluster.wait_until(lambda: len(cluster.idle_nodes()) == 3, 300, "node2 did not come back")

    attempts = run.record.attempts("warm-up")
    assert [one.action for one in attempts] == ["restart"] * 3 + ["done"], run.story()
    assert attempts[-1].nodes == ["node1", "node3"] and {one.job for one in attempts} == {job}
    assert " Restarts=0 " in cluster.sh("scontrol", "--oneliner", "show", "job", job)
    found = small_run.metrics(run.run, "warm-up")
    assert found == wanted and len(found) == STEPS
    done = [json.loads(line) for line in (run.run / "tracking" / "phase-warm-up.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in done if "loss" in record.get("metrics", {})]
    # A copy that was on its way when its rank died gives way to the one before it.
    assert 0 < len(steps) - len(set(steps)) < 3 * 2 * EVERY, "more was lost than what no copy held"
    logs = "".join(path.read_text() for path in run.run.glob("logs/warm-up.*.rank0.log"))
    assert len(re.findall(r"goes on from step \d*[02468]\b", logs)) == 3, "there was no checkpoint on the disk"
    assert small_run.onediff(["track", "sync", str(run.run)]).returncode == 0
    client = MlflowClient(f"sqlite:///{run.home}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("onediff").experiment_id])
    assert len([one for one in runs if "mlflow.parentRunId" not in one.data.tags]) == 1
    told = run.onediff("status", "run").stdout
    assert "recovered in " in told and len(recoveries(attempts)) == 3
    print(told, *recoveries(attempts), sep="\n")
