"""The real training on real Slurm daemons, with four ends in between: losses, scores, MLflow as of a run here."""

import json

import pytest
import slurm_cluster
import small_run
from launch_runs import RANKS, REAL_TRAINING, Launched
from mlflow import MlflowClient

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
]
STEPS = {"warm-up": 2, "one": 2, "two": 36}
ONE_ROW = {f"phases.{phase}.micro_batch": 1 for phase in STEPS}
SIZES = {**ONE_ROW, **{f"phases.{phase}.steps": steps for phase, steps in STEPS.items()}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster.SlurmCluster(tmp_path_factory.mktemp("slurm"), nodes=2) as up:
        yield up


def test_a_chain_warned_preempted_killed_and_crashed_in_phase_two_ends_as_a_run_here(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(small_run, "SECONDS", 1200)
    data = small_run.render(tmp_path / "data")
    local = small_run.train(tmp_path / "local", data, 6, "--processes", "4", **SIZES)
    assert local.returncode == 0, local.stderr[-3000:]
    words = ["evaluate", str(tmp_path / "local"), "--report", str(tmp_path / "scores.json")]
    scored = small_run.onediff(words, java=True)
    assert scored.returncode == 0, scored.stderr[-3000:]

    run = Launched(tmp_path / "home", cluster)
    run.profile |= {**REAL_TRAINING, "partition": "low"}
    run.profile["requeue"] = {"hang_minutes": 5, "start_minutes": 10, "node_failures": 9}
    run.config = {"base": "demo"}
    jobs = run.submitted(*small_run.overrides(data, 6, **SIZES))
    assert list(jobs) == ["warm-up", "one", "two", "evaluate"]
    run.wait_step("two", 5, 900)
    cluster.sh("scancel", "--signal=USR1", jobs["two"])
    run.wait(lambda: len(run.record.attempts("two")) > 1, 300, "not queued again after the warning")
    run.wait_step("two", run.record.attempts("two")[0].last_step + 2, 600)
    cluster.sh("sbatch", "--partition=dev", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 2")
    run.wait(lambda: len(run.record.attempts("two")) > 2, 300, "not queued again after the preemption")
    run.wait_step("two", run.record.attempts("two")[1].last_step + 5, 600)
    cluster.stop_controller()
    cluster.start_controller()
    cluster.on("node2", "pkill", "-KILL", "-o", "-f", RANKS)
    run.wait(lambda: len(run.record.attempts("two")) > 3, 300, "not queued again after the death of a rank")
    run.wait_step("two", run.record.attempts("two")[2].last_step + 2, 600)
    cluster.crash("node2")
    state = ["squeue", "--noheader", f"--jobs={jobs['two']}", "--format=%T"]
    cluster.wait_until(lambda: "RUNNING" not in cluster.sh(*state), 300, "node2 is not missed")
    cluster.start_node("node2")
    run.wait_end("evaluate", 900)

    causes = [[attempt.cause for attempt in run.record.attempts(phase)] for phase in jobs]
    two = causes.pop(2)
    assert causes == [["finished"]] * 3, run.story()
    assert two[:2] == ["stopped", "stopped"] and two[-1] == "finished", run.story()
    attempts = run.record.attempts("two")
    assert all(attempt.tasks == 4 and len(attempt.nodes) == 2 for attempt in attempts)
    warned, preempted, *died, _ = attempts
    assert preempted.first_step == warned.last_step and died[0].first_step == preempted.last_step, "warnings cost steps"
    # The restarted controller may end a step once more than it was asked to.
    assert "on node2 was ended by SIGKILL" in died[0].reason and "node fail" in died[-1].reason and len(died) <= 3
    told = run.onediff("explain", "run").stdout
    assert all(attempt.reason in told for attempt in attempts[:-1])
    for phase, steps in STEPS.items():
        on_slurm, here = (small_run.metrics(folder, phase) for folder in (run.run, tmp_path / "local"))
        assert on_slurm == here and len(here) == steps, f"phase {phase} has another loss curve"
    twice = steps_twice(run, "two", small_run.metrics(tmp_path / "local", "two"))
    assert twice <= 5 * len(died), f"{twice} steps were lost, more than a checkpoint interval a death"
    assert {state["state"] for state in run.states().values()} == {"finished"}

    scores = json.loads((run.run / "evaluation" / "scores.json").read_text())["scores"]
    assert scores == json.loads((tmp_path / "scores.json").read_text())["scores"] and scores
    assert small_run.onediff(["track", "sync", str(run.run)]).returncode == 0
    client = MlflowClient(f"sqlite:///{run.home}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("onediff").experiment_id])
    parents = [one for one in runs if "mlflow.parentRunId" not in one.data.tags]
    assert [one.info.run_name for one in parents] == ["run"] and len(runs) == len(STEPS) + 2
    assert {f"system/{node}/cpu_utilization_percentage" for node in ("node1", "node2")} <= set(parents[0].data.metrics)


def steps_twice(run: Launched, phase: str, wanted: dict[int, float]) -> int:
    """Steps that were done again, each with the loss that it had the first time."""
    done = []
    for line in (run.run / "tracking" / f"phase-{phase}.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "metrics" in record and "loss" in record["metrics"]:
            assert record["metrics"]["loss"] == wanted[record["step"]]
            done.append(record["step"])
    return len(done) - len(set(done))
