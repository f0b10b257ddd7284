"""ZeRO-3 with one and with two processes computes what a bare torch loop computes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from bare_torch import STEPS, bare_losses
from small_run import PHASES, config, metrics, render, train

from onediff.model.build import architecture_only
from onediff.model.onediff import OneDiffModel
from onediff.runs.folder import RunFolder
from onediff.training.checkpoint import latest_checkpoint, read_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run with one process and with two, which write captions of samples between the phases; the second makes few
    logits at a time, in as many chunks as it has targets for, which differs between the ranks."""
    made = {}
    for processes, chunk in ((1, "null"), (2, 40)):
        made[processes] = tmp_path_factory.mktemp("runs") / f"with-{processes}"
        more = {"training.loss_chunk": chunk, "training.sample_captions": 2}
        done = train(made[processes], data, STEPS, "--processes", str(processes), **more)
        assert done.returncode == 0, done.stderr
    return made


def test_one_process_two_processes_and_bare_torch_have_the_same_losses(data, runs):
    for name, losses, norms in bare_losses(data, runs[1]):
        for run in runs.values():
            assert list(metrics(run, name).values()) == pytest.approx(losses, abs=1e-5), name
            assert list(metrics(run, name, "grad_norm").values()) == pytest.approx(norms, rel=1e-4), name


def test_what_a_phase_freezes_stays_bit_identical_and_what_it_trains_changes(runs, data):
    run = RunFolder(runs[2])
    for before, after in itertools.pairwise(PHASES):
        trains = config(data, STEPS).phases[after].train
        old = dict(read_weights(latest_checkpoint(run.checkpoints(before))))
        new = dict(read_weights(latest_checkpoint(run.checkpoints(after))))
        assert old.keys() == new.keys()
        changed = {name.partition(".")[0] for name in old if not torch.equal(old[name], new[name])}
        assert changed == set(trains)


def test_a_frozen_part_has_no_optimizer_state(runs):
    from onediff.training.checkpoint import read_manifest

    manifest = read_manifest(latest_checkpoint(RunFolder(runs[2]).checkpoints("one")))
    with_moments = {
        name.partition(".")[0] for name, parameter in manifest.parameters.items() if "exp_avg" in parameter.states
    }
    assert with_moments == {"delta", "projector"}


def test_the_architecture_alone_builds_the_same_model(runs, data):
    settings = config(data, STEPS)
    whole, bare = OneDiffModel(settings.model), OneDiffModel(architecture_only(settings.model))
    shapes = {name: p.shape for name, p in whole.named_parameters()}
    assert {name: p.shape for name, p in bare.named_parameters()} == shapes
