"""Data jobs: what is refused before anything is queued, and an array on real Slurm daemons that makes one data set."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest
import slurm_cluster
import yaml
from launch_runs import Launched
from raw_data import encoded, put

from launcher.data_job import load_data_job
from onediff.cli import main
from onediff.data.manifest import file_sha256, read_manifest
from onediff.errors import UserError

needs_slurm = pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing()))


def raw(folder: Path, pairs: int = 30) -> Path:
    """A table of pairs and its images."""
    rows = []
    for number in range(pairs):
        for role in ("before", "after"):
            put(folder / f"{number}-{role}.png", encoded(number * 2 + (role == "after")))
        rows.append({"before": f"{number}-before.png", "after": f"{number}-after.png", "caption": f"change {number}"})
    return put(folder / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def convert(table: Path, out: Path) -> str:
    paths = f"--table {shlex.quote(str(table))} --out {shlex.quote(str(out))}"
    return f"convert generic {paths} --shard-samples 5 --dataset-name mine"


def write(file: Path, *commands: str, name: str = "mine") -> Path:
    return put(file, yaml.safe_dump({"name": name, "commands": list(commands)}))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\ncommands: []", "commands"),
        ("name: a\ncommands: [stats x]", "cannot be split over tasks"),
        ("name: a\ncommands: [compsoe --pairs 3]", "did you mean 'compose'"),
        ("name: a\ncommands: [render --pears 3 --out x]", "unrecognized arguments: --pears 3"),
        ("name: a\ncommands: [render --pairs 3]", "required: --out"),
        ("name: a\ncommands: [render --pairs 3 --out x --share 0/2]", "remove --share; the launcher sets it"),
        ('name: a\ncommands: ["render \'x"]', "No closing quotation"),
        ("name: a\ncomands: [render]\ncommands: [render]", "did you mean 'commands'"),
        ("[1, 2]", "expected a mapping"),
        ("out: x\nparts: {a: {reader: levir-cc, annotations: /no/such}}", "raw files of every part are missing"),
        ("out: x\nparts: {a: {reader: levir-cc, imges: x}}", "did you mean 'images'"),
    ],
)
def test_jobs_that_no_task_could_do(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        load_data_job(put(tmp_path / "job.yaml", text))
    assert words in str(caught.value) and str(caught.value).startswith(str(tmp_path / "job.yaml"))


def test_the_dry_run_shows_both_scripts_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    present = raw(tmp_path / "raw")
    parts = {
        "mine": {"reader": "generic", "annotations": str(present)},
        "later": {"reader": "levir-cc", "images": "no"},
    }
    file = put(tmp_path / "all.yaml", yaml.safe_dump({"out": str(tmp_path / "out"), "parts": parts}))
    words = ["launch", "data", str(file), "--tasks", "64", "--at-most", "8", "--profile", "plain", "--dry-run"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "skipped: later: raw files missing: no" in out
    assert "#SBATCH --array=0-63%8" in out and out.count("--gpus") == 0 and out.count("#!/bin/bash") == 2
    out = " ".join(out.replace("\\\n", " ").split())
    assert f"{tmp_path}/runs/data-all shards" in out and f"{tmp_path}/runs/data-all merge" in out
    assert not (tmp_path / "runs").exists()
    assert main([*words[:-1], "--run", "$(x)"]) == 2 and main([*words[:4], "0"]) == 2


def test_without_slurm_the_commands_run_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "job.yaml", convert(raw(tmp_path / "raw"), tmp_path / "out") + " --processes 1")
    assert main(["launch", "data", str(file), "--profile", "local"]) == 0
    assert read_manifest(tmp_path / "out" / "train").samples == 30


@needs_slurm
def test_an_array_makes_one_data_set_and_a_second_call_goes_on(tmp_path):
    """A task fails the first time: nothing is put together; the same command again makes only what is missing."""
    table = raw(tmp_path / "a 'raw' folder")
    assert main(["data", *shlex.split(convert(table, tmp_path / "alone")), "--processes", "1"]) == 0
    with slurm_cluster.SlurmCluster(tmp_path / "slurm", nodes=2) as cluster:
        run = Launched(tmp_path / "home", cluster)
        guard = (
            '[ "${SLURM_ARRAY_TASK_ID:-}" != 2 ] || [ -e "$0" ] || { echo "no licence here" >&2; exit 7; }; exec "$@"'
        )
        run.profile["command"] = ["/bin/sh", "-c", guard, str(tmp_path / "go"), sys.executable, "-m", "onediff"]
        file = write(tmp_path / "home" / "job.yaml", convert(table, tmp_path / "out"))
        words = ["data", str(file), "--tasks", "3", "--run", "run", "--profile", str(run.home / "profile.yaml")]

        def states() -> dict[str, str]:
            return {phase: str(row["state"]) for phase, row in run.states().items()}

        done = run.onediff(*words, "--at-most", "2")
        assert done.returncode == 0, done.stderr
        run.wait(lambda: states() == {"shards": "failed", "merge": "cancelled"}, 180, "the task did not fail")
        assert "task 2 on node" in run.states()["shards"]["why"] and "no licence here" in run.states()["shards"]["why"]
        assert run.states()["shards"]["step"] == 2 and not (tmp_path / "out" / "train").exists()
        told = run.onediff("explain", "run").stdout
        assert "no licence here" in told and "then run: onediff launch data" in told
        before = {
            path.name: os.stat(path).st_mtime_ns for path in (tmp_path / "out" / ".tmp-train").glob("chunk-*.tar")
        }
        assert len(before) == 4

        (tmp_path / "go").touch()
        assert run.onediff(*words).returncode == 0
        refused = run.onediff(*words)
        assert refused.returncode == 2 and "onediff launch cancel" in refused.stderr
        run.wait(lambda: states() == {"shards": "finished", "merge": "finished"}, 180, "the data set was not made")
        assert contents(tmp_path / "out" / "train") == contents(tmp_path / "alone" / "train")
        kept = {os.stat(path).st_mtime_ns for path in (tmp_path / "out" / "train").glob("*.tar")}
        assert set(before.values()) <= kept, "what was made is not made again"
        assert read_manifest(tmp_path / "out" / "train").samples == 30
        assert "train" in run.onediff("logs", "run", "--phase", "shards", "--rank", "1").stdout
        assert "Everything has finished." in run.onediff("explain", "run").stdout
