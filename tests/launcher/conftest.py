"""Slurm daemons, one cluster for all tests of this folder, and runs on them."""

import pytest
import slurm_cluster
from launch_runs import Launched


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    with slurm_cluster.SlurmCluster(tmp_path_factory.mktemp("slurm")) as up:
        yield up


@pytest.fixture
def launched(cluster, tmp_path):
    """Makes runs, and leaves no job behind."""
    yield lambda **wish: Launched(tmp_path / "home", cluster, **wish)
    cluster.sh("scancel", "--user=root", check=False)
    cluster.wait_until(lambda: not cluster.sh("squeue", "-h"), 300, "jobs are left")
