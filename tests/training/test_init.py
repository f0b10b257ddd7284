"""A run that starts from another run or an export goes on as that one would have, at any topology."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_run import config, metrics, onediff, render, train

from launcher.plan import remaining
from launcher.record import Record
from onediff.cli import main
from onediff.config.run import RunConfig
from onediff.errors import UserError
from onediff.model.tokenizer import learn_tokenizer
from onediff.parallel.ranks import Ranks
from onediff.parallel.topology import Topology
from onediff.runs.address import Address
from onediff.runs.folder import RunFolder
from onediff.training.checkpoint import read_weights
from onediff.training.found import found
from onediff.training.start import starting_model

STEPS = 4
MORE = {"phases.warm-up.steps": 2, "phases.one.steps": 2}
FEW = {**MORE, "training.sample_captions": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("data"), 40, 40)


@pytest.fixture(scope="module")
def source(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all its phases, by one process."""
    run = tmp_path_factory.mktemp("runs") / "source"
    done = train(run, data, STEPS, **FEW)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def export(source: Path) -> Path:
    """Its first two phases as a saved model."""
    folder = source.with_name("export")
    assert main(["export", f"{source}@one", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def begun(source: Path, export: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A run of phase two alone, with each part from a run or from its export; its folder, and the sources.

    It is split over two tensor ranks under ZeRO-3, although one process wrote the sources.
    """
    folder = tmp_path_factory.mktemp("begun")
    moved, model = shutil.copytree(source, folder / "source"), shutil.copytree(export, folder / "export")
    parts = {"vision": f"{moved}@one", "delta": f"{moved}@one:2", "projector": model, "language": model}
    cut = {"parallel.tensor": 2, "parallel.zero_stage": 3, "phases.two.checkpoint_every": 2}
    init = {f"init.{part}": place for part, place in parts.items()}
    done = train(folder / "run", data, STEPS, "--phases", "two", "--processes", "2", **FEW, **cut, **init)
    assert done.returncode == 0, done.stderr
    return folder / "run", moved, model


def tags(run: Path) -> dict[str, str]:
    opening = json.loads((run / "tracking" / "phase-two.jsonl").read_text().splitlines()[0])
    return opening["open"]["tags"]


def test_phase_two_alone_goes_on_from_another_runs_phase_one(source, begun):
    run, moved, model = begun
    assert list(metrics(run, "two").values()) == pytest.approx(list(metrics(source, "two").values()), abs=1e-5)
    assert (run / "tokenizer" / "tokenizer.json").read_bytes() == (source / "tokenizer" / "tokenizer.json").read_bytes()
    place = moved / "checkpoints" / "phase-one" / "step-00000002"
    assert tags(run)["started_from"] == f"{place}, {model}"
    assert tags(run)["init.delta"] == str(place) and tags(run)["init.language"] == str(model)
    assert tags(run)["init.delta.id"] == json.loads((source / "tracking" / "run.json").read_text())["id"]
    assert tags(run)["init.language.phase"] == "one"


@pytest.mark.long
def test_it_resumes_by_one_process_when_what_it_began_from_is_gone(source, begun):
    run, *began_from = begun
    expected = list(metrics(source, "two").values())
    for gone in began_from:
        shutil.rmtree(gone)
    (run / "phase-two" / "finished.json").unlink()
    shutil.rmtree(run / "checkpoints" / "phase-two" / "step-00000004")
    done = onediff(["train", str(run), "--phases", "two", "--resume", "parallel.tensor=1"])
    assert done.returncode == 0, done.stderr
    assert "continues from step 2" in done.stderr
    assert list(metrics(run, "two").values()) == pytest.approx(expected, abs=1e-5)


def start(settings: RunConfig, folder: Path):
    """Starts the phase `two` in this process."""
    return starting_model(settings, "two", RunFolder(folder), Topology(Ranks(), 1, None))


def test_an_address_alone_is_the_whole_model(source, export, data, tmp_path):
    stored = dict(read_weights(found(Address.of(f"{source}@one")).checkpoint))
    shutil.copytree(source / "tokenizer", tmp_path / "tokenizer")
    like_export = {"model": export, "init": export}
    for values in ({"init": f"{source}@one"}, {"init": export}, like_export):
        settings = config(data, STEPS, **{"parallel.zero_stage": 0}, **values)
        assert settings.model.delta == config(data, STEPS).model.delta
        model, _ = start(settings, tmp_path)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, stored[name]), name


def test_a_new_language_model_takes_over_a_trained_tower(source, data, tmp_path):
    """The projector, which joins them, starts over."""
    stored = dict(read_weights(found(Address.of(f"{source}@one")).checkpoint))
    shutil.copytree(source / "tokenizer", tmp_path / "tokenizer")
    parts = {"init.vision": f"{source}@one", "init.delta": f"{source}@one", "model.language.config.hidden_size": 64}
    model, _ = start(config(data, STEPS, **{"parallel.zero_stage": 0}, **parts), tmp_path)
    for name, parameter in model.named_parameters():
        taken = name.startswith(("vision.", "delta."))
        assert taken == (stored[name].shape == parameter.shape and torch.equal(parameter, stored[name])), name


def test_what_does_not_fit_is_named(source, export, data, tmp_path):
    def refused(match: str, init: object, **more: object) -> None:
        with pytest.raises(UserError, match=match) as fault:
            start(config(data, STEPS, **{"parallel.zero_stage": 0}, init=init, **more), tmp_path)
        assert "\n" not in str(fault.value)

    shutil.copytree(source / "tokenizer", tmp_path / "tokenizer")
    for origin in (f"{source}@one", export):
        refused(
            r"init.delta: .*delta.tokens is \(\d+, \d+\) there and \(8, \d+\) in this run; use the same model.delta",
            origin,
            **{"model.delta.tokens": 8},
        )
    refused(r"init.delta: .*: model.delta.heads is \d+ there and 1 in this run", export, **{"model.delta.heads": 1})
    refused(
        r"init.language: .*language.model.layers.1..* is missing in the model of this run; use the same model.language",
        export,
        **{"model.language.config.num_hidden_layers": 1},
    )
    refused("no-run: no such folder", str(tmp_path / "no-run"))
    refused("export@best: a saved model has only one set of weights", f"{export}@best")
    refused(
        r"source@three: write a phase, a step, `best` or PHASE:STEP after @; phases with checkpoints: warm-up, one, two",
        f"{source}@three",
    )
    refused(r"source@one:7: phase one has no checkpoint 7 .*; it has steps 2", f"{source}@one:7")
    refused(r"source@best: phase two has no checkpoint best \(phases.two.best is not set", f"{source}@best")
    refused("unknown key 'init.vison' .did you mean 'vision'", "{vison: x}")
    shutil.rmtree(tmp_path / "tokenizer")
    learn_tokenizer(["other words"], 300, tmp_path / "tokenizer")
    refused("init.language: .*: uses another tokenizer .*; set model.language.tokenizer to", str(export))


def test_an_address_names_a_phase_a_step_or_both(source):
    places = {text: found(Address.of(f"{source}{text}"))[:2] for text in ("", "@one", "@4", "@one:2", "@warm-up")}
    assert places == {
        "": ("two", 4),
        "@one": ("one", 2),
        "@4": ("two", 4),
        "@one:2": ("one", 2),
        "@warm-up": ("warm-up", 2),
    }


def test_a_run_that_begins_with_init_queues_its_last_phase_alone(data, tmp_path):
    record, alone = Record(tmp_path), config(data, STEPS)
    begun = config(data, STEPS, init="runs/a@one")
    with pytest.raises(UserError, match="two needs phase warm-up, which has not finished"):
        remaining(record, alone.phases, ["two"], has_init=False)
    assert remaining(record, begun.phases, ["two"], has_init=True) == ["two"]
    with pytest.raises(UserError, match="two needs phase one, which has not finished"):
        remaining(record, begun.phases, ["warm-up", "two"], has_init=True)
