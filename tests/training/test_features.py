"""Features of a frozen tower: batches of them train exactly as those of images do, and no other tower's are taken."""

import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch

from onediff.data.cursor import Cursor
from onediff.data.loader import read_batches
from onediff.errors import UserError
from onediff.model.build import build_processor
from onediff.model.onediff import OneDiffModel
from onediff.training.data import make_tokenizer, phase_stream
from onediff.training.features import check_features, frozen_tower, write_features
from onediff.training.optimizer import freeze
from tests.support import small_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_run.render(tmp_path_factory.mktemp("features"), pairs=20, singles=20)


def configuration(data: Path, **more: object):
    kept = {
        f"data.sets.{name}": f"{{path: {data / name}, features: {data / 'kept' / name}}}"
        for name in ("pairs", "singles")
    }
    trained = {f"phases.{phase}.train": "[delta, projector, language]" for phase in ("warm-up", "one", "two")}
    settings = {**kept, **trained, "training.precision": "fp32", "phases.one.couple": True, **more}
    return small_run.config(data, 2, **settings)


def losses_and_gradients(config, data_config, phase_name: str, steps: int = 3) -> list[torch.Tensor]:
    phase = config.phases[phase_name]
    tokenizer = Path(config.data.sets["pairs"].path).parent / "tokenizer"
    if not tokenizer.is_dir():
        make_tokenizer(config, config.model.language.tokenizer, tokenizer)
    processor, _ = build_processor(config.model, data_config, tokenizer)
    stream = phase_stream(data_config, phase, processor)
    torch.manual_seed(config.training.seed)
    model = OneDiffModel(config.model)
    check_features(stream, model.vision, config)
    freeze(model, phase)
    found = []
    batches = read_batches(stream, phase.global_batch, Cursor.start(range(phase.global_batch)), 0, 1, 0.5)
    for batch, _ in islice(batches, steps):
        assert (batch.features is None) == (len(batch.images) > 0)
        loss = model(batch)
        loss.sum().backward()
        found += [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    return found


def test_batches_of_features_train_exactly_as_batches_of_images(data):
    for fit in ("tiles", "pad"):
        config = configuration(data, **{"model.vision.image.fit": fit})
        tower, digest = frozen_tower(config, CPU)
        for name in ("pairs", "singles"):
            write_features(config, name, tower, digest, overwrite=True)
        for phase in ("one", "two"):
            kept = losses_and_gradients(config, config.data, phase)
            seen = losses_and_gradients(config, config.data.from_images(), phase)
            assert len(kept) == len(seen) > 10
            assert all(torch.equal(a, b) for a, b in zip(kept, seen, strict=True))


def test_features_of_another_tower_or_of_other_images_are_refused(data, tmp_path):
    there = shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("kept"))
    config = configuration(there)
    for name in ("pairs", "singles"):
        write_features(config, name, *frozen_tower(config, CPU))
    losses_and_gradients(config, config.data, "two", steps=1)
    other = configuration(there, **{"training.seed": 1})
    with pytest.raises(UserError, match=r"data.sets.pairs.features: these features .* the tower's weights differ"):
        losses_and_gradients(other, other.data, "two")
    otherwise = configuration(there, **{"model.vision.image.std": "[0.5, 0.5, 0.5]"})
    with pytest.raises(UserError, match=r"image.std is \[0.268.*, not \[0.5, 0.5, 0.5\]; rewrite them"):
        losses_and_gradients(otherwise, otherwise.data, "two")
    with pytest.raises(UserError, match=r"the tower's weights differ.*--overwrite"):
        write_features(other, "pairs", *frozen_tower(other, CPU))
    swapped = configuration(
        there, **{"data.sets.pairs": f"{{path: {there / 'pairs'}, features: {there / 'kept/singles'}}}"}
    )
    with pytest.raises(UserError, match="kept/singles/train: holds no features of the current shard"):
        losses_and_gradients(swapped, swapped.data, "two")


def test_features_of_shards_that_were_replaced_are_refused_also_without_a_manifest(data, tmp_path):
    there = shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("kept", "manifest.json"))
    config = configuration(there)
    tower = frozen_tower(config, CPU)
    for name in ("pairs", "singles"):
        write_features(config, name, *tower)
    losses_and_gradients(config, config.data, "two", steps=1)
    counts = ["--pairs", "20", "--singles", "0", "--split-sizes", "train=0.8,test=0.2", "--processes", "1"]
    done = small_run.onediff(["data", "render", "--out", str(tmp_path / "new"), *counts, "--seed", "1"])
    assert done.returncode == 0, done.stderr
    shutil.copy(tmp_path / "new/pairs/train/pairs-train-000000.tar", there / "pairs/train")
    with pytest.raises(UserError, match=r"no features of the current shard pairs-train-000000.tar.*--overwrite"):
        losses_and_gradients(config, config.data, "two")
    with pytest.raises(UserError, match=r"no features of the current shard pairs-train-000000.tar.*--overwrite"):
        write_features(config, "pairs", *tower)
    write_features(config, "pairs", *tower, overwrite=True)
    assert write_features(config, "pairs", *tower).samples == 16


def test_features_go_with_no_phase_that_trains_the_tower_and_with_all_data_sets_of_a_phase(data):
    with pytest.raises(UserError, match=r"phases.two.train: names vision, but data.sets.pairs.features"):
        configuration(data, **{"phases.two.train": "[vision, language]"})
    with pytest.raises(UserError, match=r"phases.two.mix: pairs has features and singles has none"):
        configuration(data, **{"data.sets.singles": data / "singles"})


@pytest.mark.long
def test_two_ranks_at_stage_three_train_on_features_as_on_images(data, tmp_path):
    config = configuration(data, **{"model.vision.image.fit": "pad"})
    tower, digest = frozen_tower(config, CPU)
    frozen = {f"phases.{phase}.train": "[delta, projector, language]" for phase in small_run.PHASES}
    losses = {}
    for kept in (True, False):
        sets = {
            f"data.sets.{name}": f"{{path: {data / name}, features: {data / 'kept' / name if kept else 'null'}}}"
            for name in ("pairs", "singles")
        }
        if kept:
            for name in ("pairs", "singles"):
                write_features(config, name, tower, digest, overwrite=True)
        settings = {**frozen, **sets, "training.precision": "fp32", "training.sample_captions": 0}
        done = small_run.train(tmp_path / str(kept), data, 3, "--processes", "2", **settings)
        assert done.returncode == 0, done.stderr
        assert ("the vision tower is not run" in done.stderr) == kept
        losses[kept] = [small_run.metrics(tmp_path / str(kept), phase) for phase in small_run.PHASES]
    assert losses[True] == losses[False]
    another_seed = {"training.seed": 7, "model.vision.image.fit": "pad"}
    of_the_run = configuration(data, **another_seed, **{"init.vision": tmp_path / "True"})
    assert frozen_tower(of_the_run, CPU)[1] == digest != frozen_tower(configuration(data, **another_seed), CPU)[1]
