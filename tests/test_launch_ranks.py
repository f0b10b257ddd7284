"""`launcher.ranks`: the place of a process from each launcher's variables, and clear words when they are wrong."""

import pytest

from launcher.ranks import expand_nodes, rank_environment, tasks_per_node
from onediff.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NODELIST": "gpu[06-08]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
}
LAUNCHED = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"}


def test_alone():
    assert rank_environment({})[:4] == (0, 0, 1, 1)


def test_launcher_variables_win_over_slurm():
    ranks = rank_environment({**SLURM, **LAUNCHED, "MASTER_PORT": "29500"})
    assert ranks == (5, 1, 8, 4, 1, "a", 29500, "4711")


def test_slurm_task():
    ranks = rank_environment(SLURM)
    assert ranks[:6] == (6, 2, 8, 4, 1, "gpu07") and ranks.job == "4711"
    assert 10_000 <= ranks.master_port < 30_000


def test_a_batch_script_is_no_rank_although_it_has_a_procid():
    batch = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "n[1-2]"}
    assert rank_environment(batch)[:4] == (0, 0, 1, 1)


def test_the_port_is_one_for_a_step_and_another_for_the_next():
    ports = {
        rank_environment({**SLURM, "SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": restart}).master_port
        for job in ("1", "2", "3")
        for restart in ("0", "1", "2")
    }
    assert len(ports) == 9
    same = {rank_environment({**SLURM, "SLURM_PROCID": str(rank)}).master_port for rank in range(8)}
    assert len(same) == 1


def test_every_rank_of_512_nodes():
    places = []
    for rank in range(512 * 8):
        places.append(
            rank_environment(
                {
                    **SLURM,
                    "SLURM_STEP_NUM_TASKS": "4096",
                    "SLURM_STEP_TASKS_PER_NODE": "8(x512)",
                    "SLURM_STEP_NODELIST": "rack[0-3]-n[001-128]",
                    "SLURM_PROCID": str(rank),
                    "SLURM_LOCALID": str(rank % 8),
                    "SLURM_NODEID": str(rank // 8),
                }
            )
        )
    assert [place.rank for place in places] == list(range(4096))
    assert {(place.node, place.local_rank) for place in places} == {(n, g) for n in range(512) for g in range(8)}
    assert {(place.master_addr, place.master_port, place.world_size) for place in places} == {
        ("rack0-n001", places[0].master_port, 4096)
    }


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("solo", ["solo"]),
        ("a,b", ["a", "b"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[008-010,12],x", ["node008", "node009", "node010", "node12", "x"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("a[1]-ib,b[2-2]-ib", ["a1-ib", "b2-ib"]),
    ],
)
def test_node_lists(text, hosts):
    assert expand_nodes(text) == hosts


@pytest.mark.parametrize("text", ["", "a[1-", "a[x]", "a[1-2"])
def test_unreadable_node_lists(text):
    with pytest.raises(UserError, match="cannot be read"):
        expand_nodes(text)


def test_task_counts():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(UserError, match="task counts"):
        tasks_per_node("2(y3)")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({**LAUNCHED}, "MASTER_PORT is not set"),
        ({**LAUNCHED, "MASTER_PORT": "1", "RANK": "eight"}, "RANK='eight' is not a whole number"),
        ({**LAUNCHED, "MASTER_PORT": "1", "RANK": "8"}, "rank 8 is not below the number of ranks, 8"),
        ({**LAUNCHED, "MASTER_PORT": "1", "LOCAL_RANK": "4"}, "local rank 4 is not below the number of ranks, 4"),
        ({**SLURM, "SLURM_NODEID": "2"}, "names 2 nodes"),
        ({key: value for key, value in SLURM.items() if key != "SLURM_PROCID"}, "SLURM_PROCID is not set"),
    ],
)
def test_incomplete_or_contradictory(environ, message):
    with pytest.raises(UserError, match=message):
        rank_environment(environ)
