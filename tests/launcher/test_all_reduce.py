"""Sums over real ranks: over all of them, over those of a node, and what is said without a GPU."""

import json
import os
import sys

from launcher.local import run_local

WORDS = [sys.executable, "-m", "onediff.parallel.all_reduce"]


def test_sums_over_all_ranks_and_over_a_node(tmp_path):
    assert run_local([*WORDS, str(tmp_path / "all.json")], 2, log_dir=tmp_path) == 0
    assert run_local([*WORDS, str(tmp_path / "own.json"), "--per-node"], 2, log_dir=tmp_path) == 0
    for name in ("all.json", f"{os.uname().nodename}.own.json"):
        found = json.loads((tmp_path / name).read_text())
        assert found["world"] == 2 and found["latency_us"] > 0 and found["mb_per_second"] > 0


def test_a_node_without_the_gpus_it_should_have(tmp_path):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    assert run_local([*WORDS, str(tmp_path / "n.json"), "--gpus"], 1, log_dir=tmp_path, env=env) == 1
    assert "torch sees no GPU:" in (tmp_path / "local.rank0.log").read_text() and not (tmp_path / "n.json").exists()
