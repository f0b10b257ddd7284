"""The real training on real daemons: a rank, all ranks of a node and a node die, and what each recovery costs.

The figures of docs/slurm.md are those that this prints (`-s`).
"""

import itertools
import json
import re

import pytest
import slurm_cluster
import small_run
from launch_runs import RANKS, REAL_TRAINING, Launched
from mlflow import MlflowClient

from launcher.goodput import recoveries

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
]
STEPS, AT_MOST = 40, 4
PHASE = ["--phases", "warm-up"]
SIZES = {"phases.warm-up.micro_batch": 1, "training.sample_captions": 0}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster.SlurmCluster(tmp_path_factory.mktemp("slurm"), nodes=5) as up:
        yield up


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The data set, and the losses of four processes of this machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data = small_run.render(folder / "data")
    local = small_run.train(folder / "local", data, STEPS, "--processes", "4", *PHASE, **SIZES)
    assert local.returncode == 0, local.stderr[-3000:]
    return data, small_run.metrics(folder / "local", "warm-up")


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(small_run, "SECONDS", 1200)


def run_with_three_deaths(cluster, home, data, words, rule, **settings):
    """A run of four ranks on two nodes; each time on the second of its nodes, a rank, all ranks, and the node die."""
    run = Launched(home, cluster)
    run.profile |= REAL_TRAINING
    run.profile["requeue"] = {"hang_minutes": 5, "start_minutes": 10, **rule}
    run.config = {"base": "demo"}
    run.submitted(*PHASE, *small_run.overrides(data, STEPS, **SIZES, **settings), *words)
    deaths = (
        lambda node: cluster.on(node, "pkill", "-KILL", "-o", "-f", RANKS),
        lambda node: cluster.on(node, "pkill", "-KILL", "-f", RANKS),
        cluster.crash,
    )
    node = ""
    try:
        for number, die in enumerate(deaths, start=1):
            before = run.record.attempts("warm-up")[-1].first_step if number > 1 else 0
            run.wait_step("warm-up", before + 6, 900)
            node = run.record.attempts("warm-up")[-1].nodes[-1]
            die(node)
            run.wait(lambda n=number: len(run.record.attempts("warm-up")) > n, 300, "not started again")
        run.wait_end("warm-up", 900)
    finally:
        if node not in cluster.inits:
            cluster.start_node(node)
        cluster.wait_until(lambda: len(cluster.idle_nodes()) == cluster.count, 300, f"{node} did not come back")
    print(run.onediff("status", "run").stdout, *recoveries(run.record.attempts("warm-up")), sep="\n")
    return run


def restarts(cluster, run):
    shown = cluster.sh("scontrol", "--oneliner", "show", "job", run.record.latest_jobs()["warm-up"])
    return int(shown.split(" Restarts=")[1].split()[0])


def test_deaths_cost_what_was_done_since_the_last_copy_in_memory_and_the_losses_are_those_of_a_run_here(
    cluster, undisturbed, tmp_path
):
    data, wanted = undisturbed
    copies = {"training.peer_copies": f"{{repeat_at_most: {AT_MOST}}}", "phases.warm-up.checkpoint_every": 1000}
    run = run_with_three_deaths(cluster, tmp_path, data, ["--spares", "1"], {"node_failures": 9}, **copies)

    attempts = run.record.attempts("warm-up")
    assert [one.action for one in attempts] == ["restart"] * 3 + ["done"], run.story()
    assert attempts[-1].nodes == ["node1", "node3"] and restarts(cluster, run) == 0
    found = small_run.metrics(run.run, "warm-up")
    assert found == wanted and len(found) == STEPS
    done = [json.loads(line) for line in (run.run / "tracking" / "phase-warm-up.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in done if "loss" in record.get("metrics", {})]
    assert len(steps) > len(set(steps)), "no step was lost"
    for before, after in itertools.pairwise(attempts):
        log = (run.run / "logs" / f"warm-up.{after.number}.rank0.log").read_text()
        begun = int(re.search(r"continues from step (\d+)", log)[1])  # there was no checkpoint on the disk
        assert 0 <= before.last_step - begun <= AT_MOST, run.story()
    assert small_run.onediff(["track", "sync", str(run.run)]).returncode == 0
    client = MlflowClient(f"sqlite:///{run.home}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("onediff").experiment_id])
    assert len([one for one in runs if "mlflow.parentRunId" not in one.data.tags]) == 1
    assert "recovered in " in run.onediff("status", "run").stdout and len(recoveries(attempts)) == 3


def test_the_same_deaths_without_a_node_to_spare_queue_the_job_again_and_the_losses_are_the_same(
    cluster, undisturbed, tmp_path
):
    """A node that ends an attempt is left out, and one that waits for other jobs has to be asked for."""
    data, wanted = undisturbed
    every = {"phases.warm-up.checkpoint_every": AT_MOST}
    run = run_with_three_deaths(cluster, tmp_path, data, [], {"node_failures": 1}, **every)

    attempts = run.record.attempts("warm-up")
    assert [one.action for one in attempts] == ["requeue"] * 3 + ["done"], run.story()
    assert restarts(cluster, run) == 3 and len(recoveries(attempts)) == 3
    assert small_run.metrics(run.run, "warm-up") == wanted
