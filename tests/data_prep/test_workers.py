"""data_prep.workers: the same bytes from a Dask cluster as from this machine, also where a worker dies."""

import os
import signal
from pathlib import Path

import pytest
from raw_data import numbered_images, table
from test_writer import contents

from onediff.cli import main

distributed = pytest.importorskip("distributed")

ROWS = [{"before": f"{a}.png", "after": f"{b}.jpg", "caption": f"{a} to {b}"} for a in range(6) for b in range(6)]


def test_a_cluster_writes_what_one_process_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "convert", "generic", "--table", str(table(numbered_images(tmp_path) / "t.csv", ROWS))]
    words += ["--shard-samples", "5"]
    assert main([*words, "--out", str(tmp_path / "alone"), "--processes", "1"]) == 0
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "local_directory": str(tmp_path)}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        address = cluster.scheduler_address
        assert main([*words, "--out", str(tmp_path / "cluster"), "--processes", address]) == 0
        assert contents(tmp_path / "cluster/train") == contents(tmp_path / "alone/train")
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        where = ["--where", "'3 to' in caption", "--out"]
        for place, processes in (("one", "1"), ("many", address)):
            command = ["data", "filter", str(tmp_path / "alone"), *where, str(tmp_path / place)]
            assert main([*command, "--processes", processes]) == 0
        assert contents(tmp_path / "one/train") == contents(tmp_path / "many/train")
        assert main(["data", "check", str(tmp_path / "many"), "--processes", address]) == 0
        (tmp_path / "alone/train/manifest.json").write_text("{}")
        assert main(["data", "check", str(tmp_path / "alone"), "--processes", address]) == 2
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "gone"), "--processes", "tcp://127.0.0.1:9"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("onediff: error: tcp://127.0.0.1:9: no Dask scheduler answers there")
