"""The real training on real Slurm daemons: the same losses as on this machine, and one MLflow run, warned in between."""

import pytest
import slurm_cluster
import small_run
from launch_runs import Launched

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
]
STEPS = 6


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = slurm_cluster.SlurmCluster(tmp_path_factory.mktemp("slurm"), nodes=2)
    try:
        made.up()
        yield made
    finally:
        made.down()


def test_a_chain_on_two_nodes_warned_in_phase_two_trains_as_an_undisturbed_local_run(cluster, tmp_path):
    data = small_run.render(tmp_path / "data")
    local = small_run.train(tmp_path / "local", data, STEPS, "--processes", "2")
    assert local.returncode == 0, local.stderr[-3000:]

    run = Launched(tmp_path / "home", cluster)
    run.profile |= {"tasks_per_node": 1, "command": None, "environment": {"OMP_NUM_THREADS": "1"}, "warn_seconds": 60}
    run.profile["requeue"] = {"hang_minutes": 3, "start_minutes": 5}
    run.config = {"base": "demo"}
    jobs = run.submitted(*small_run.overrides(data, STEPS))
    assert list(jobs) == ["warm-up", "one", "two", "evaluate"]
    run.wait_step("two", 2, 400)
    cluster.sh("scancel", "--signal=USR1", jobs["two"])
    run.wait_end("evaluate", 400)

    causes = [[attempt.cause for attempt in run.record.attempts(phase)] for phase in jobs]
    assert causes == [["finished"], ["finished"], ["stopped", "finished"], ["finished"]], run.story()
    for phase in small_run.PHASES:
        on_slurm, here = (small_run.metrics(folder, phase) for folder in (run.run, tmp_path / "local"))
        assert on_slurm == here and len(here) == STEPS, f"phase {phase} has another loss curve"
    assert {state["state"] for state in run.states().values()} == {"finished"}
    assert (run.run / "evaluation" / "scores.json").is_file()
