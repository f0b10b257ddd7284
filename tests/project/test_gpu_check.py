"""`make gpu-check ARGS=--dry-run`: every check does what a CPU can, and none fails."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.gpu_check import CHECKS

NEEDS_A_GPU = {"defaults", "waits", "plan", "graphs"}


@pytest.mark.long
def test_every_check_passes_on_a_cpu_or_says_why_it_cannot(tmp_path):
    words = ["benchmarks/gpu_check.py", "--dry-run", "--json", str(tmp_path / "report.json")]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["check"]: row for row in json.loads((tmp_path / "report.json").read_text())["checks"]}
    assert list(rows) == list(CHECKS)
    assert {name for name, row in rows.items() if row["result"] == "not here"} == NEEDS_A_GPU
    assert {row["result"] for name, row in rows.items() if name not in NEEDS_A_GPU} == {"passed"}
    assert all(row["why"].startswith("a CPU ") for row in rows.values() if row["why"])
    assert len(rows["resume"]["figures"]["losses"]) == 8


def test_all_checks_together_take_at_most_ten_minutes():
    assert sum(check.seconds for check in CHECKS.values()) <= 600


def test_a_check_that_is_none_is_refused():
    words = [sys.executable, "benchmarks/gpu_check.py", "--only", "speed"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2 and "--only: no check 'speed'; there are ranks, attention, " in done.stderr
