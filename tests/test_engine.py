"""ZeRO-3 with one and with two processes computes what a bare torch loop computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from onediff.data.loader import Loader, Share
from onediff.model.build import architecture_only, build_row_maker
from onediff.model.onediff import OneDiffModel
from onediff.runs.folder import RunFolder
from onediff.training.checkpoint import latest_checkpoint, read_weights
from onediff.training.data import phase_stream
from onediff.training.parts import freeze, parameter_groups
from onediff.training.schedule import rate
from tests.small_run import PHASES, config, metrics, render, train

STEPS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run with one process and with two; the second makes few logits at a time, in as many chunks as it has
    targets for, which differs between the ranks."""
    made = {}
    for processes, chunk in ((1, "null"), (2, 40)):
        made[processes] = tmp_path_factory.mktemp("runs") / f"with-{processes}"
        done = train(made[processes], data, STEPS, "--processes", str(processes), **{"training.loss_chunk": chunk})
        assert done.returncode == 0, done.stderr
    return made


def bare_losses(data: Path, run: Path, steps: int = STEPS) -> Iterator[tuple[str, list[float], list[float]]]:
    """Losses and gradient norms of each phase by torch alone: no DeepSpeed, one process, the whole batch at once."""
    settings = config(data, steps)
    maker, _ = build_row_maker(settings.model, settings.data, RunFolder(run).tokenizer)
    torch.manual_seed(settings.training.seed)
    model = OneDiffModel(settings.model)
    for name, phase in settings.phases.items():
        freeze(model, phase)
        groups = parameter_groups(model, phase, settings.optimizer)
        optimizer = torch.optim.AdamW(groups, betas=settings.optimizer.betas, eps=settings.optimizer.eps)
        share = Share.of_rank(phase.global_batch, phase.global_batch, 0, 1)
        draws = dict.fromkeys(share.lanes, 0)
        batches = iter(Loader(phase_stream(settings, phase, maker), share, draws, 0, 2, 1.0))
        losses, norms = [], []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate(settings.optimizer, step, steps)
            loss = model(next(batches)).mean()
            optimizer.zero_grad()
            loss.backward()
            trained = [p for group in groups for p in group["params"]]
            norms.append(float(torch.nn.utils.clip_grad_norm_(trained, settings.optimizer.clip)))
            optimizer.step()
            losses.append(loss.item())
        yield name, losses, norms


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
