"""Flight records as torch writes them: who did not arrive at a collective."""

import os
import pickle
import subprocess
import sys

import pytest

from launcher.flight import PREFIX, missing, read_record
from launcher.record import Record

RANK = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(2))
if dist.get_rank() != 1:
    dist.all_reduce(torch.ones(2), async_op=True)
with open(sys.argv[1] + str(dist.get_rank()), "wb") as file:
    file.write(torch._C._distributed_c10d._dump_fr_trace())
os._exit(0)
"""


def test_a_run_is_explained_by_the_rank_that_did_not_arrive(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 10_000), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(logs / PREFIX)],
            env={**os.environ, **place, "RANK": str(rank), "TORCH_FR_BUFFER_SIZE": "100", "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [rank.wait(300) for rank in ranks] == [0, 0]
    (logs / f"{PREFIX}2").write_bytes(b"half a rec")
    line = "group default_pg: rank 1 did not reach all_reduce number 2, where the other rank waited"
    assert missing(logs) == [line]
    from launcher.follow import explanation
    from launcher.record import write_json

    record = Record(tmp_path)
    write_json(record.plan_file, {"phases": {"one": {}}, "rule": {"restarts_without_progress": 1, "node_failures": 2}})
    assert f"NCCL's flight records in {logs}: {line}" in explanation(record)


@pytest.mark.parametrize("value", [os.system, ["a"], {"entries": [{}]}])
def test_what_is_no_record_is_refused_and_runs_nothing(tmp_path, value):
    (tmp_path / "record").write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match="not a flight record"):
        read_record(tmp_path / "record")
