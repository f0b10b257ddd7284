"""The figures of docs/performance.md are those of `benchmarks/results/`, measured on commits of this history."""

import json
import subprocess

import pytest

from benchmarks.table import PAGE, RESULTS, written


def git(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *words], cwd=RESULTS, capture_output=True, text=True, check=False)


def test_the_tables_of_the_page_are_made_from_the_results():
    page = PAGE.read_text()
    assert written(page) == page, "run python benchmarks/table.py --write"


def test_every_result_names_its_machine_and_a_commit_of_this_history():
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("no whole git history here")
    machines = {file.name: json.loads(file.read_text()).get("machine") for file in RESULTS.glob("*.json")}
    for name, machine in machines.items():
        assert {"commit", "processor", "cores"} <= set(machine), name
        assert not git("merge-base", "--is-ancestor", machine["commit"], "HEAD").returncode, (name, machine["commit"])
