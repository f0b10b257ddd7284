"""The layout of processes as T × D."""

import subprocess
import sys
from pathlib import Path

import pytest
from places import HOUSE

from onediff.config.parallel import ParallelConfig
from onediff.errors import UserError
from onediff.parallel.topology import Topology, check_world
from onediff.ranks import Ranks


def test_worlds_that_do_not_fit_are_refused():
    check_world(ParallelConfig(tensor=4), Ranks(0, 0, 16, 8))
    check_world(ParallelConfig(tensor=16, across_nodes=True), Ranks(0, 0, 16, 8))
    with pytest.raises(UserError, match="6 processes cannot be split into groups of 4"):
        check_world(ParallelConfig(tensor=4), Ranks(0, 0, 6, 6))
    with pytest.raises(UserError, match=r"do not fit into nodes of 8.*across_nodes=true"):
        check_world(ParallelConfig(tensor=16), Ranks(0, 0, 16, 8))


def test_tensor_groups_are_neighbours():
    places = [Topology(Ranks(rank, rank, 6, 6), 2, None) for rank in range(6)]
    assert [(t.dp_rank, t.tp_rank) for t in places] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert {t.dp_size for t in places} == {3}


def test_invalid_offload_settings_are_refused():
    with pytest.raises(ValueError, match="offload_parameters needs zero_stage 3"):
        ParallelConfig(zero_stage=2, offload_parameters="cpu")
    with pytest.raises(ValueError, match="offload_optimizer needs zero_stage"):
        ParallelConfig(zero_stage=0, offload_optimizer="cpu")
    with pytest.raises(ValueError, match="nvme needs zero_stage 3"):
        ParallelConfig(zero_stage=2, offload_optimizer="nvme", nvme_folder="/scratch")
    with pytest.raises(ValueError, match="nvme needs nvme_folder"):
        ParallelConfig(offload_optimizer="nvme")
    with pytest.raises(ValueError, match="only optimizer states can be offloaded to NVMe"):
        ParallelConfig(offload_parameters="nvme", nvme_folder="/scratch")
    for offload in ("none", "cpu"):
        with pytest.raises(ValueError, match="nvme_folder is only for offload_optimizer: nvme; set that too, or"):
            ParallelConfig(offload_optimizer=offload, nvme_folder="/scratch")


def test_the_folder_of_swapped_states_may_be_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert ParallelConfig(offload_optimizer="nvme", nvme_folder="~/x").nvme_folder == Path("/home/me/x")
    with pytest.raises(ValueError, match=r"~nobody-here/x: .*; write the path in full"):
        ParallelConfig(offload_optimizer="nvme", nvme_folder="~nobody-here/x")


def test_the_configuration_and_the_ranks_need_no_torch():
    code = "import sys; import onediff.config.parallel, onediff.parallel.ranks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=HOUSE).returncode == 0
