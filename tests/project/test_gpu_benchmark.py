"""`make bench-gpu ARGS=--dry-run`: what needs no GPU is measured, in every part, and the report holds it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import PARTS

WANTED = "abe"
"""What takes seconds: attention and products, whole steps, agreement. The others differ in models of Hugging Face."""
FOR_A_GPU = ("sdpa, cudnn only", "sdpa, efficient only")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The report as JSON; beside it lies the one in Markdown."""
    path = tmp_path_factory.mktemp("bench") / "report.json"
    words = ["benchmarks/gpu.py", "--dry-run", "--parts", WANTED, "--json", str(path)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return path


def test_all_that_runs_on_the_host_is_measured(report):
    parts = json.loads(report.read_text())["parts"]
    assert sorted(parts) == sorted(WANTED)
    for name, records in parts.items():
        for record in records:
            why = record.get("not_measured")
            no_gpu = why == "there is no CUDA device" or (why and record.get("backend") in FOR_A_GPU)
            assert why is None or no_gpu, (name, record)
    assert all(record["agrees"] for record in parts["e"] if "agrees" in record)
    assert {"fp8, one scale", "fp8, a scale per row"} <= {record["backend"] for record in parts["a"]}
    steps = {(record["phase"], record["engine"]) for record in parts["b"]}
    assert steps == {(phase, engine) for phase in ("one", "two") for engine in ("deepspeed", "torch")}


def test_the_tables_hold_every_measured_record(report):
    parts, text = json.loads(report.read_text())["parts"], report.with_suffix(".md").read_text()
    for name, records in parts.items():
        table = text.partition(f"## ({name}) {PARTS[name].title}")[2].partition("\n## ")[0]
        rows = [line for line in table.splitlines() if line.startswith("| ")]
        assert len(rows) == 2 + sum("not_measured" not in record for record in records)
        assert all(column in rows[0] for column in PARTS[name].columns)
        assert table.count("- not measured: ") == sum("not_measured" in record for record in records)


def without(modules: tuple[str, ...], code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What `code` says and does on a machine that lacks these modules."""
    blocked = f"import sys; sys.modules |= dict.fromkeys({modules})\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + code, *words], capture_output=True, text=True, timeout=300, check=False
    )


SPARED = ("simplejpeg", "PIL", "deepspeed", "megatron", "peft", "mlflow", "webdataset")
RUN = "import runpy; sys.argv[0] = 'benchmarks/gpu.py'; runpy.run_path('benchmarks/gpu.py', run_name='__main__')"


def test_every_part_needs_only_what_is_promised():
    modules = sorted({part.module for part in PARTS.values()} | {"llava"})
    code = "sys.path[:0] = ['benchmarks', '.']\n" + "\n".join(f"import gpu_parts.{module}" for module in modules)
    done = without(SPARED, code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_without_torch_one_line_says_what_is_needed():
    done = without(("torch",), RUN, "--dry-run")
    assert done.returncode == 2
    assert done.stderr.startswith("torch is not installed for ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--part", "a"], "unrecognized arguments: --part a"),
        (["--parts", ""], "--parts: no part ''; give some of the letters abcder"),
        (["--parts", "ax"], "--parts: no part 'x'; give some of the letters abcder"),
    ],
)
def test_parts_that_are_none_are_refused(words, line):
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    usage, error = done.stderr.splitlines()
    assert "--parts LETTERS" in usage
    assert error.endswith(line)
