"""Who a process is, and whether the processes of a run can be T × D."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

from onediff.errors import UserError
from onediff.parallel.config import ParallelConfig
from onediff.parallel.ranks import Ranks
from onediff.parallel.topology import Topology, check_world


def test_ranks_of_a_launcher_of_srun_and_of_nobody():
    torchrun = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    assert Ranks.from_environment(torchrun) == Ranks(5, 1, 8, 4)
    srun = {"SLURM_PROCID": "3", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "MASTER_ADDR": "n0"}
    assert Ranks.from_environment(srun) == Ranks(3, 0, 4, 4)
    assert Ranks.from_environment({**srun, **torchrun}).rank == 5
    # A plain command inside an allocation, without srun, is one process.
    assert Ranks.from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "64"}) == Ranks()
    assert Ranks.from_environment({}) == Ranks()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"WORLD_SIZE": None}, "WORLD_SIZE: expected a number, got None"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK: expected a number, got 'x'"),
        ({"RANK": "8"}, "rank 8 does not exist among 8"),
    ],
)
def test_incomplete_environment_is_named(change, message):
    environment = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", **change}
    with pytest.raises(UserError, match=message):
        Ranks.from_environment({k: v for k, v in environment.items() if v is not None})


def test_worlds_that_do_not_fit():
    check_world(ParallelConfig(tensor=4), Ranks(0, 0, 16, 8))
    check_world(ParallelConfig(tensor=16, across_nodes=True), Ranks(0, 0, 16, 8))
    with pytest.raises(UserError, match="6 processes cannot be groups of 4"):
        check_world(ParallelConfig(tensor=4), Ranks(0, 0, 6, 6))
    with pytest.raises(UserError, match=r"do not fit into nodes of 8.*across_nodes=true"):
        check_world(ParallelConfig(tensor=16), Ranks(0, 0, 16, 8))


def test_tensor_groups_are_neighbours():
    places = [Topology(Ranks(rank, rank, 6, 6), 2, None) for rank in range(6)]
    assert [(t.dp_rank, t.tp_rank) for t in places] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert {t.dp_size for t in places} == {3}


def test_offload_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="offload_parameters needs zero_stage 3"):
        ParallelConfig(zero_stage=2, offload_parameters="cpu")
    with pytest.raises(ValueError, match="offload_optimizer needs zero_stage"):
        ParallelConfig(zero_stage=0, offload_optimizer="cpu")
    with pytest.raises(ValueError, match="nvme needs zero_stage 3"):
        ParallelConfig(zero_stage=2, offload_optimizer="nvme", nvme_folder="/scratch")
    with pytest.raises(ValueError, match="nvme needs nvme_folder"):
        ParallelConfig(offload_optimizer="nvme")
    with pytest.raises(ValueError, match="weights cannot lie on NVMe"):
        ParallelConfig(offload_parameters="nvme", nvme_folder="/scratch")
    for offload in ("none", "cpu"):
        with pytest.raises(ValueError, match="nvme_folder is for offload_optimizer: nvme only; set that too, or"):
            ParallelConfig(offload_optimizer=offload, nvme_folder="/scratch")


def test_the_folder_of_swapped_states_may_lie_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert ParallelConfig(offload_optimizer="nvme", nvme_folder="~/x").nvme_folder == Path("/home/me/x")
    with pytest.raises(ValueError, match=r"~nobody-here/x: .*; write the path in full"):
        ParallelConfig(offload_optimizer="nvme", nvme_folder="~nobody-here/x")


def test_the_configuration_and_the_ranks_need_no_torch():
    code = "import sys; import onediff.parallel.config, onediff.parallel.ranks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
