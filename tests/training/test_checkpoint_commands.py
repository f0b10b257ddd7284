"""`onediff checkpoint list|verify|convert` on checkpoints written in this process."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onediff.cli import main
from onediff.parallel.safetensors_writer import Entry, write_safetensors
from onediff.training.checkpoint.files import Files
from onediff.training.checkpoint.manifest import CheckpointManifest, StoredParameter


def written(folder: Path, step: int) -> torch.Tensor:
    """A finished checkpoint of one parameter, [3, 4], split over two ranks along its second dimension; its values."""
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    full = torch.arange(12.0).view(3, 4) + step
    files, pieces = {}, []
    for rank in range(2):
        name = f"rank-{rank:05d}-of-00002.safetensors"
        half = full[:, 2 * rank : 2 * rank + 2].reshape(-1)
        entry = Entry("weight/language.w", torch.float32, (6,), lambda half=half: half)
        files[name] = write_safetensors(path / name, [entry], {"identity": str(step), "step": str(step)})._asdict()
        pieces.append((name, 2 * rank, 2, 0, 6))
    parameter = StoredParameter((3, 4), "float32", 1, ["weight"], None, pieces)
    CheckpointManifest(str(step), step, 2, 2, 3, {}, [], {"language.w": parameter}, files=Files.of_json(files)).write(
        path
    )
    return full


@pytest.fixture
def run(tmp_path) -> Path:
    for phase, step in (("one", 10), ("two", 10), ("two", 20)):
        written(tmp_path / "run" / "checkpoints" / f"phase-{phase}", step)
    return tmp_path / "run"


def test_list(run, capsys):
    assert main(["checkpoint", "list", str(run), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert sorted((row["phase"], row["step"], row["latest"]) for row in rows) == [
        ("one", 10, True),
        ("two", 10, False),
        ("two", 20, True),
    ]
    assert {(row["tensor"], row["data"], row["parameters"]) for row in rows} == {(2, 1, 12)}
    assert main(["checkpoint", "list", str(run / "checkpoints" / "phase-two")]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") == 3
    assert "20" in text.splitlines()[2]
    assert "(latest)" in text.splitlines()[2]


def test_verify(run, capsys):
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert capsys.readouterr().out.count("good") == 3
    broken = run / "checkpoints" / "phase-two" / "step-00000010" / "rank-00001-of-00002.safetensors"
    broken.write_bytes(broken.read_bytes()[:-3])
    assert main(["checkpoint", "verify", str(run)]) == 2
    out, err = capsys.readouterr()
    assert out.count("good") == 2
    assert "rank-00001-of-00002.safetensors: cut short" in out
    assert err == "onediff: error: 1 of 3 checkpoints are damaged\n"
    assert main(["checkpoint", "verify", str(broken.parent)]) == 2
    assert "cut short" in capsys.readouterr().err


def test_convert(run, tmp_path, capsys):
    assert main(["checkpoint", "convert", str(run / "checkpoints" / "phase-two"), str(tmp_path / "out")]) == 0
    assert torch.equal(
        load_file(tmp_path / "out" / "model.safetensors")["language.w"], torch.arange(12.0).view(3, 4) + 20
    )
    assert main(["checkpoint", "convert", str(run), str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    assert main(["checkpoint", "list", str(run)]) == 2
    assert "no checkpoint here" in capsys.readouterr().err
