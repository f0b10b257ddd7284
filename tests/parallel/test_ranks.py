"""The rank of a process, from the variables of each launcher as observed, and clear errors if they are wrong."""

import os

import pytest

from onediff.cli import main
from onediff.errors import UserError
from onediff.parallel.accelerator import ALLOCATOR, RECORDER, set_defaults
from onediff.parallel.ranks import own_device
from onediff.ranks import Ranks, expand_nodes, tasks_per_node

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
MEETING = {"MASTER_ADDR": "a", "MASTER_PORT": "29500"}
BATCH = {  # Slurm 22.05, `sbatch -N2 --ntasks-per-node=2`
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "0",
    "SLURM_NPROCS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
STEP = {  # `srun --pty -n1 bash`; a step of one task inside the job above looks alike
    "SLURM_JOB_ID": "3",
    "SLURM_JOB_NODELIST": "node1",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "1",
    "SLURM_NODEID": "0",
    "SLURM_NPROCS": "1",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_PTY_PORT": "41947",
    "SLURM_STEPID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node1",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_TASKS_PER_NODE": "1",
}
OPEN_MPI = {  # 5.0
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "OMPI_UNIVERSE_SIZE": "4",
    "PMIX_RANK": "1",
}
HYDRA = {  # MPICH 4 and Intel MPI 2021
    "PMI_FD": "9",
    "PMI_RANK": "2",
    "PMI_SIZE": "3",
    "MPI_LOCALRANKID": "0",
    "MPI_LOCALNRANKS": "1",
}
HELPER = {  # in a job of two nodes, hydra starts one helper on each with srun, and ranks have its variables, too
    **BATCH,
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
DEEPSPEED = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_SIZE": "2",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
    **MEETING,
}
ALONE = {
    "nobody": {},
    "batch step of sbatch": BATCH,
    "shell of salloc": {name: BATCH[name] for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_NTASKS")},
    "shell of srun --pty -n1": STEP,
    "mpirun -n 1": {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    "torchrun of one process": {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **MEETING},
}
RANK_OF_SEVERAL = {
    "torchrun": ({**LAUNCHED, **MEETING}, (5, 1, 8, 4)),
    "torchrun in a step of srun": ({**SLURM, **LAUNCHED, **MEETING}, (5, 1, 8, 4)),
    "DeepSpeed's launcher": (DEEPSPEED, (3, 1, 4, 2)),
    "srun": (SLURM, (6, 2, 8, 4)),
    "srun --mpi=pmi2": ({**SLURM, "PMI_RANK": "6", "PMI_SIZE": "8", "PMI_FD": "9"}, (6, 2, 8, 4)),
    "srun from the shell of srun --pty": ({**STEP, **SLURM}, (6, 2, 8, 4)),
    "Open MPI": ({**OPEN_MPI, **MEETING}, (1, 1, 2, 2)),
    "Open MPI in a batch step": ({**BATCH, **OPEN_MPI, **MEETING}, (1, 1, 2, 2)),
    "MPICH": ({**HYDRA, **MEETING}, (2, 0, 3, 1)),
    "MPICH in a job": ({**HELPER, **HYDRA, **MEETING}, (2, 0, 3, 1)),
}


@pytest.fixture
def clean(monkeypatch):
    """Sets the environment to the given variables of launchers and no others."""

    def set_to(environ: dict[str, str]) -> None:
        for one in (*ALONE.values(), *(variables for variables, _ in RANK_OF_SEVERAL.values())):
            for name in one:
                monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize("launcher", ALONE)
def test_a_single_process_may_start_ranks_and_is_checked_with_and_without_them(launcher, clean, capsys, tmp_path):
    assert Ranks.from_environment(ALONE[launcher]).alone
    clean(ALONE[launcher])
    train = ["train", "configs/demo.yaml", "--run", str(tmp_path / "run"), f"data.sets.singles={tmp_path / 'no'}"]
    for words in (train, [*train, "--processes", "2"]):
        assert main(words) == 2
        assert f"{tmp_path / 'no'}/train: no such folder of shards" in capsys.readouterr().err
    for words in (["evaluate", str(tmp_path)], ["evaluate", str(tmp_path), "--processes", "2"]):
        assert main(words) == 2
        assert "neither a run" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", RANK_OF_SEVERAL)
def test_a_rank_of_several_knows_its_place_is_checked_and_starts_no_ranks(launcher, clean, capsys, tmp_path):
    environ, place = RANK_OF_SEVERAL[launcher]
    ranks = Ranks.from_environment(environ)
    assert (ranks.rank, ranks.local_rank, ranks.world, ranks.local_world) == place
    assert not ranks.alone and ranks.master_port
    assert Ranks.from_environment({**environ, **ranks.variables()}) == ranks  # as its own children find it
    clean(environ)
    train = ["train", "configs/demo.yaml", "--run", str(tmp_path / "run"), "phases.warm-up.global_batch=16"]
    assert main(train) == 2
    assert f"16 cannot be divided among {ranks.world} processes" in capsys.readouterr().err
    for words in (train, ["evaluate", str(tmp_path)]):
        assert main([*words, "--processes", "2"]) == 2
        assert f"--processes: this process is already rank {place[0]} of {place[2]}" in capsys.readouterr().err


def test_tasks_of_srun_meet_at_the_first_node_of_their_step():
    ranks = Ranks.from_environment(SLURM)
    assert ranks.master_addr == "gpu07" and 10_000 <= ranks.master_port < 30_000
    assert Ranks.from_environment({**SLURM, **MEETING}).master_addr == "a"


def test_ranks_of_mpirun_are_told_that_they_need_a_place_to_meet():
    for environ in (OPEN_MPI, {**HELPER, **HYDRA}, {**HYDRA, "MASTER_ADDR": "a"}):
        with pytest.raises(UserError, match=r"MASTER_\w+ is not set, but .*=[23] ranks need a rendezvous; pass mpirun"):
            Ranks.from_environment(environ)


def test_each_step_has_its_own_port():
    ports = {
        Ranks.from_environment({**SLURM, "SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": restart}).master_port
        for job in ("1", "2", "3")
        for restart in ("0", "1", "2")
    }
    assert len(ports) == 9
    same = {Ranks.from_environment({**SLURM, "SLURM_PROCID": str(rank)}).master_port for rank in range(8)}
    assert len(same) == 1


def test_every_rank_of_512_nodes():
    places = []
    for rank in range(512 * 8):
        places.append(
            Ranks.from_environment(
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
    assert [place.local_rank for place in places] == [*range(8)] * 512
    assert {(place.master_addr, place.master_port, place.world) for place in places} == {
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
        Ranks.from_environment(environ)


def test_a_rank_takes_its_own_gpu_among_all_of_its_node_or_the_only_one_it_sees():
    third = Ranks(11, 3, 16, 8)
    assert (own_device(third, 8), own_device(third, 1)) == (3, 0)
    with pytest.raises(UserError, match="rank 11 is number 3 of 8 on its node, but sees 2 GPUs"):
        own_device(third, 2)


def test_a_users_cuda_and_nccl_settings_are_kept_under_older_names_too(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"PATH": "/bin"})
    set_defaults(tensor=2, flight_records=tmp_path)
    assert os.environ == {
        "PATH": "/bin",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": str(tmp_path / "nccl_trace_rank_"),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }
    for name in (*RECORDER.values(), *RECORDER, *ALLOCATOR):
        monkeypatch.setattr(os, "environ", {name: "mine"})
        set_defaults(flight_records=tmp_path)
        same = {*RECORDER.items()} | {ALLOCATOR}
        others = {other for pair in same if name in pair for other in pair} - {name}
        assert os.environ[name] == "mine" and not others & set(os.environ)
