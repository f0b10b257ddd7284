"""Sweeps: which runs a line of values means, and their names."""

import subprocess
import sys

import pytest

from launcher.commands.sweep import combinations, run_names, split_overrides
from onediff.config.section import PLAIN_NAME
from onediff.errors import UserError


def test_values_with_commas_are_varied_and_lists_are_one_value():
    fixed, varied = split_overrides(["a.b=1,2", "c=x", "d=[1,2]", "e=[1,2],[3]"])
    assert fixed == ["c=x", "d=[1,2]"]
    assert varied == [["a.b=1", "a.b=2"], ["e=[1,2]", "e=[3]"]]
    points = combinations(varied)
    assert points == [("a.b=1", "e=[1,2]"), ("a.b=1", "e=[3]"), ("a.b=2", "e=[1,2]"), ("a.b=2", "e=[3]")]
    names = run_names(points)
    assert len(set(names)) == 4 and all(PLAIN_NAME.fullmatch(name) for name in names)
    assert names[0] == "b-1.e-1-2"


@pytest.mark.parametrize(
    "values", [("/data/a_b", "/data/a-b"), ("0.5", "-0.5"), tuple(f"/shared/{'deep/' * 20}{name}" for name in "ab")]
)
def test_runs_have_different_names_even_where_their_values_look_alike_in_a_name(values):
    names = run_names([(f"data.sets.pairs.path={value}",) for value in values])
    assert len(set(names)) == 2 and all(PLAIN_NAME.fullmatch(name) and len(name) <= 100 for name in names)


@pytest.mark.parametrize(
    ("overrides", "words"), [(["a=1"], "nothing to vary"), (["a"], "expected key.subkey=value"), (["a=1,1"], "twice")]
)
def test_lines_that_mean_nothing(overrides, words):
    with pytest.raises(UserError, match=words):
        split_overrides(overrides)


def test_a_wrong_value_anywhere_queues_nothing(tmp_path):
    def sweep(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "onediff", "launch", "sweep", "demo.yaml", *words, "--profile", "plain"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    wrong = sweep("optimizer.lr=1e-3,abc")
    assert wrong.returncode == 2 and "optimizer.lr" in wrong.stderr and wrong.stderr.count("\n") == 1
    values = ["optimizer.lr=1e-3,1e-4", "training.seed=1,2", "--dry-run"]
    crowded = sweep(*values)
    assert (
        crowded.returncode == 2
        and "8 ranks (1 nodes of 8) with parallel.tensor × parallel.context = 1 cannot split" in crowded.stderr
    )
    listed = sweep(*values, *(f"phases.{phase}.micro_batch=4" for phase in ("warm-up", "one", "two")))
    assert listed.returncode == 0, listed.stderr
    assert "still missing: data sets singles, pairs" in listed.stderr
    assert listed.stdout.splitlines()[1] == "optimizer.lr=1e-3 training.seed=2" and len(listed.stdout.splitlines()) == 4
    assert not (tmp_path / "runs").exists()
