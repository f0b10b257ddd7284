"""Held-out loss, the best checkpoint and the early end: the same at any topology, and after a run was killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from places import SUPPORT
from processes import run_ranks
from small_run import config, metrics, overrides, render, train

from onediff.cli import main
from onediff.config.compose import load_run
from onediff.errors import UserError
from onediff.model.tokenizer import learn_tokenizer
from onediff.runs.address import Address
from onediff.training.checkpoint import read_manifest
from onediff.training.data import training_texts
from onediff.training.found import found

STEPS, ENDS = 20, 8
DROPOUT = {"model.delta.dropout": 0.1, "training.sample_captions": 0, "data.seed": 3}
# The loss falls from the first measurement on: judged the wrong way round, the first is the best forever.
JUDGED = {
    "phases.warm-up.validate_every": 2,
    "phases.warm-up.validation": "{split: test, rows: 5}",
    "phases.warm-up.best": "{direction: higher, stop_after: 3}",
    "phases.warm-up.checkpoint_every": 4,
    "phases.warm-up.keep_checkpoints": 1,
    "phases.warm-up.keep_every": 4,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("data"), 40, 40)


@pytest.fixture(scope="module")
def judged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "judged"
    done = train(run, data, STEPS, "--phases", "warm-up", **DROPOUT, **JUDGED)
    assert done.returncode == 0, done.stderr
    assert f"phase warm-up ends at step {ENDS} of {STEPS}: best validation/loss " in done.stderr
    return run


def steps_of(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints" / "phase-warm-up").glob("step-*"))


@pytest.mark.long
def test_a_validation_changes_no_loss_of_the_training(judged, data, tmp_path):
    done = train(tmp_path / "run", data, STEPS, "--phases", "warm-up", **DROPOUT)
    assert done.returncode == 0, done.stderr
    for name in ("loss", "grad_norm"):
        alone = metrics(tmp_path / "run", "warm-up", name)
        assert metrics(judged, "warm-up", name) == {step: alone[step] for step in range(1, ENDS + 1)}


def test_the_best_checkpoint_stays_and_has_a_name(judged, capsys):
    losses = metrics(judged, "warm-up", "validation/loss")
    assert list(losses) == [2, 4, 6, 8] and max(losses, key=losses.__getitem__) == 2
    assert steps_of(judged) == ["step-00000002", "step-00000004", "step-00000008"]
    assert found(Address.of(f"{judged}@best"))[:2] == ("warm-up", 2)
    assert main(["checkpoint", "list", str(judged)]) == 0
    best, _, newest = capsys.readouterr().out.splitlines()[1:]
    assert best.endswith(f"(best: validation/loss {losses[2]:.4f})") and newest.endswith("(latest)")
    assert json.loads((judged / "phase-warm-up" / "finished.json").read_text())["step"] == ENDS


def test_a_killed_run_measures_the_same_keeps_the_same_best_and_ends_at_the_same_step(judged, data, tmp_path):
    """Asked to stop at step 4, so that this checkpoint was written without its validation."""
    run = shutil.copytree(judged, tmp_path / "killed")
    checkpoints = run / "checkpoints" / "phase-warm-up"
    shutil.rmtree(checkpoints / "step-00000008")
    (run / "phase-warm-up" / "finished.json").unlink()
    (checkpoints / "best").unlink()
    manifest = read_manifest(checkpoints / "step-00000004")
    assert manifest.extra["measures"]["best"]["since"] == 1
    manifest.extra["measures"] = read_manifest(checkpoints / "step-00000002").extra["measures"]
    manifest.write(checkpoints / "step-00000004")
    done = train(run, data, STEPS, "--phases", "warm-up", "--resume", **DROPOUT, **JUDGED)
    assert done.returncode == 0, done.stderr
    assert "continues from step 4" in done.stderr
    assert metrics(run, "warm-up", "validation/loss") == metrics(judged, "warm-up", "validation/loss")
    assert metrics(run, "warm-up") == metrics(judged, "warm-up")
    assert steps_of(run) == steps_of(judged)
    assert found(Address.of(f"{run}@best")).step == 2


def test_the_same_loss_on_two_ranks_cut_over_two_and_row_by_row(data, tmp_path):
    settings = config(data, 1)
    texts = training_texts(settings.data, settings.phases.values())
    learn_tokenizer(texts, settings.model.language.tokenizer.vocabulary, tmp_path / "tokenizer")
    out = tmp_path / "losses.json"
    run_ranks(SUPPORT / "validation_worker.py", [*map(str, (data, tmp_path / "tokenizer", out))], 2)
    losses = json.loads(out.read_text())
    alone = losses.pop("row by row")
    assert set(alone) == {"validation/loss", "validation/loss/pairs", "validation/loss/singles"}
    for name, (first, second) in losses.items():
        assert first == second, name
        assert first == pytest.approx(alone, abs=2e-6), name


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"phases.two.best": "{}"}, "phases.two: best: validation/loss needs `validate_every`"),
        (
            {"phases.two.best": "{metric: loss}"},
            "phases.two.best: metric: 'loss' must start with validation/ or evaluation/",
        ),
        (
            {"phases.two.validate_every": 1, "phases.two.validation.split": "train"},
            "phases.two.validation.split: this run trains on 'train' of pairs; choose a held-out split",
        ),
        (
            {"phases.two.validate_every": 1, "phases.two.validation.sets": "[pears]"},
            "no data set 'pears' under data.sets",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(data, more, fault):
    with pytest.raises(UserError, match=fault.replace(".", r"\.").replace("(", r"\(")):
        load_run("configs/demo.yaml", overrides(data, 1, **more))


def test_a_split_that_is_not_there_is_named_beside_those_that_are(data):
    from onediff.data.splits import validated_sets

    settings = config(data, 1, **{"phases.two.validate_every": 1})
    with pytest.raises(UserError, match=r"set pairs has no split 'val'; set validation\.split to one of test, train"):
        validated_sets(settings.data, settings.phases["two"], "two")
