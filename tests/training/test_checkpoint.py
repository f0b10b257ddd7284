"""Checkpoints: saved by real DeepSpeed ranks, resumed by others, refused when they are not whole."""

import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kept import KeptNodes
from places import SUPPORT
from processes import end, run_ranks, start_ranks
from safetensors.torch import load_file

from onediff.errors import UserError
from onediff.parallel.safetensors_writer import Entry, write_safetensors
from onediff.ranks import Ranks
from onediff.training import checkpoint
from onediff.training.checkpoint.copies import PeerCopies
from onediff.training.checkpoint.folder import checkpoints, prune, remove, step_of
from onediff.training.checkpoint.manifest import FILE

WORKER = SUPPORT / "checkpoint_worker.py"


def results_of(folder: Path, actions: list[dict], world: int) -> list[dict]:
    """Runs the actions in `world` ranks; one result per action."""
    out = folder / "results.json"
    run_ranks(WORKER, [json.dumps(actions), str(out)], world)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[dict[int, KeptNodes]]:
    """By ZeRO stage two nodes, of one rank each, that keep copies in memory."""
    folder = tmp_path_factory.mktemp("nodes")
    made = {stage: KeptNodes(folder / str(stage), "node0", "node1") for stage in (3, 1)}
    for each in made.values():
        each.link("node0", "node1")
    yield made
    for each in made.values():
        each.end()


@pytest.fixture(scope="module")
def saved(nodes, tmp_path_factory) -> tuple[Path, list[dict]]:
    """Checkpoints at step 4 of two ranks at stages 3, 1 and 0 and in bf16, each with the four losses that follow."""
    folder = tmp_path_factory.mktemp("saved")
    actions = [
        {"stage": 3, "to": 4, "save": str(folder / "three"), "then": 8, "dropout": 0.3},
        {"stage": 1, "to": 4, "save": str(folder / "one"), "then": 8},
        {"stage": 0, "to": 4, "save": str(folder / "zero"), "then": 8},
        {"stage": 3, "precision": "bf16", "to": 4, "save": str(folder / "three-bf16"), "then": 8},
        {"stage": 1, "precision": "bf16", "to": 4, "save": str(folder / "one-bf16"), "then": 8},
        {"stage": 3, "to": 4, "save": str(folder / "background"), "then": 8, "dropout": 0.3, "background": True},
        {"stage": 1, "to": 1, "save": str(folder / "full"), "then": 200, "background": True, "file_limit": 1000},
        {
            "stage": 3,
            "to": 2,
            "save": str(folder / "spoilt"),
            "save_each": [2, 2],
            "spoil": "weight",
            "background": True,
        },
        {"stage": 1, "to": 2, "save": str(folder / "spoilt-one"), "save_each": [2, 3], "spoil": "exp_avg_sq"},
        *(
            {"stage": stage, "copies": str(nodes[stage].folder), "to": 8, "dropout": 0.3, "context": CONTEXT[stage]}
            for stage in (3, 1)
        ),
    ]
    return folder, results_of(folder, actions, 2)


STEP = "step-00000004"
CONTEXT = {3: 2, 1: 1}
"""By ZeRO stage, the size of the context groups in which the copies in memory are made."""


@pytest.fixture(scope="module")
def resumed(saved, nodes, tmp_path_factory) -> list[dict]:
    """What two new ranks make of those checkpoints, of a truncated one and of one of another model.

    Then of the copies, once a spare has taken the place of the second node: where they are newer than the newest
    checkpoint, and where they are not.
    """
    folder, _ = saved
    broken = tmp_path_factory.mktemp("broken")
    cut = shutil.copytree(folder / "three" / STEP, broken / "cut")
    file = sorted(cut.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-10])
    foreign = shutil.copytree(folder / "one" / STEP, broken / "foreign")
    manifest = json.loads((foreign / FILE).read_text())
    manifest["parameters"]["third.weight"] = manifest["parameters"].pop("second.weight")
    (foreign / FILE).write_text(json.dumps(manifest))
    actions = [
        {"stage": 3, "load": str(folder / "three" / STEP), "dropout": 0.3},
        {"stage": 1, "load": str(folder / "one" / STEP)},
        {"stage": 0, "load": str(folder / "zero" / STEP)},
        {"stage": 3, "precision": "bf16", "load": str(folder / "three-bf16" / STEP)},
        {"stage": 1, "precision": "bf16", "load": str(folder / "one-bf16" / STEP)},
        # Other stages on the same ranks.
        {"stage": 2, "load": str(folder / "zero" / STEP)},
        {"stage": 0, "load": str(folder / "one" / STEP)},
        {"stage": 3, "load": str(cut)},
        {"stage": 3, "load": str(foreign)},
    ]
    for stage, each in nodes.items():
        each.lose("node1")
        each.start("spare")
        each.link("node0", "spare")
        places = [str(each.place(name)) for name in ("node0", "spare")]
        where = {"stage": stage, "load_copy": places, "dropout": 0.3, "context": CONTEXT[stage]}
        actions += [{**where, "newer_than": after} for after in (2, 4)]
    return results_of(broken, [{"from": 4, "to": 8, "seed": 9, **action} for action in actions], 2)


def test_same_topology_goes_on_bit_by_bit(saved, resumed):
    for before, after in zip(saved[1][:5], resumed, strict=False):
        assert after["extra"] == {"lanes": [1, 2]}
        assert after["losses"] == before["then"]


def test_a_checkpoint_written_in_the_background_is_the_same(saved):
    """The training goes on meanwhile, and neither disturbs the other."""
    folder, runs = saved
    assert runs[5]["then"] == runs[0]["then"]
    manifests = [checkpoint.verify_checkpoint(folder / name / STEP) for name in ("three", "background")]
    assert manifests[0].parameters == manifests[1].parameters
    for file in manifests[0].files:
        before, after = (load_file(folder / name / STEP / file) for name in ("three", "background"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_rank_that_cannot_write_in_the_background_stops_all_at_the_next_step(saved):
    """Its files may not grow beyond some bytes, as on a full disk."""
    folder, runs = saved
    assert "File too large" in runs[6]["error"]
    assert "then" not in runs[6]
    assert checkpoint.latest_checkpoint(folder / "full") is None


@pytest.mark.parametrize(
    ("number", "name", "step", "state"), [(7, "spoilt", 2, "weight"), (8, "spoilt-one", 3, "exp_avg_sq")]
)
def test_a_number_that_is_not_finite_is_never_written_over_a_good_checkpoint(saved, number, name, step, state):
    """Spoilt on one rank, after a good checkpoint of the same step or of the one before; refused on both."""
    folder, runs = saved
    good = folder / name / "step-00000002"
    told = f"its {state} is not finite at step {step}, so no checkpoint was written; {good} stays the latest"
    assert runs[number]["error"].endswith(told)
    assert checkpoint.latest_checkpoint(folder / name) == good
    assert sorted(path.name for path in (folder / name).iterdir()) == ["latest", "step-00000002"]
    checkpoint.verify_checkpoint(good)
    assert all(bool(weights.isfinite().all()) for _, weights in checkpoint.read_weights(good))


@pytest.mark.parametrize(("stage", "before", "after"), [(3, 9, 9), (1, 10, 11)])
def test_copies_in_memory_outlive_a_node_and_go_on_bit_by_bit(saved, resumed, nodes, stage, before, after):
    taken, too_old = resumed[after : after + 2]
    assert taken["extra"] == {"step": 4, "lanes": [{"0": 4}, {"1": 4}]}
    assert taken["losses"] == saved[1][before]["losses"]
    assert too_old["extra"] is None, "a checkpoint of the same step counts"
    generations = sorted(path.name[:13] for path in nodes[stage].place("node0").glob("step-*"))
    assert generations == ["step-00000002", "step-00000004"]


def test_another_stage_goes_on(saved, resumed):
    for stage, reference in ((5, 2), (6, 1)):
        assert resumed[stage]["losses"] == pytest.approx(saved[1][reference]["then"], abs=1e-5)


def test_all_ranks_refuse_alike(resumed):
    """Only one rank reads the damaged file; both must raise the same line instead of waiting for each other."""
    cut, foreign = resumed[7:9]
    assert "cut short" in cut["error"]
    assert "of another model" in foreign["error"]
    assert "second.weight" in foreign["error"]


def test_one_rank_goes_on_from_two(saved, tmp_path):
    folder, runs = saved
    actions = [
        {"stage": stage, "load": str(folder / name / STEP), "from": 4, "to": 8, "seed": 9}
        for stage, name in ((0, "one"), (3, "one"), (2, "zero"))
    ]
    actions += [{"stage": stage, "load": str(folder / "one" / STEP), "decay": 0.3} for stage in (1, 3)]
    *resumed, changed, changed_three = results_of(tmp_path, actions, 1)
    for run, reference in zip(resumed, (1, 1, 2), strict=True):
        assert run["losses"] == pytest.approx(runs[reference]["then"], abs=1e-5)
    for run in (changed, changed_three):
        assert run["groups"] == [[0.02 / 1.3, 0.3], [0.02 / 1.3, 0.0]], "the rate goes on, what is configured holds"


def test_read_weights_gives_the_whole_model(saved):
    from checkpoint_worker import Net

    folder, _ = saved
    stages = [dict(checkpoint.read_weights(folder / name / STEP)) for name in ("one", "zero")]
    shapes = {name: p.shape for name, p in Net().named_parameters()}
    for weights in stages:
        assert {name: w.shape for name, w in weights.items()} == shapes
        assert all(w.dtype == torch.float32 for w in weights.values())
    for name in shapes:
        torch.testing.assert_close(stages[0][name], stages[1][name], rtol=0, atol=1e-6)
    plain = Net()
    checkpoint.load_weights(plain, folder / "one" / STEP)
    assert all(torch.equal(p, stages[0][name]) for name, p in plain.named_parameters())


def test_manifest_counts_steps_and_leaves_frozen_parts_without_moments(saved):
    manifest = checkpoint.read_manifest(saved[0] / "three" / STEP)
    assert manifest.step == 4
    assert manifest.parameters["first.weight"].steps == 4
    assert manifest.parameters["first.weight"].states == ["weight", "exp_avg", "exp_avg_sq"]
    assert manifest.parameters["frozen.weight"].states == ["weight"]
    assert [group["weight_decay"] for group in manifest.groups] == [0.1, 0.0]


def copy_of(saved, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[0] / "three" / STEP, tmp_path / STEP))


def test_damage_is_named(saved, tmp_path):
    path = copy_of(saved, tmp_path)
    assert checkpoint.verify_checkpoint(path).step == 4
    file = sorted(path.glob("*.safetensors"))[1]
    whole = file.read_bytes()

    file.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=rf"{file.name}: cut short.*delete the folder {path} to resume"):
        checkpoint.verify_checkpoint(path)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"{file.name}: damaged.*delete the folder {path} to resume"):
        checkpoint.verify_checkpoint(path)
    shutil.copy(saved[0] / "one" / STEP / file.name, file)
    with pytest.raises(UserError, match=rf"{file.name}: (belongs to step 4 of another save|cut short)"):
        checkpoint.verify_checkpoint(path)
    write_safetensors(
        file, [Entry("x", torch.uint8, (len(whole),), lambda: torch.zeros(len(whole), dtype=torch.uint8))], {}
    )
    with pytest.raises(UserError, match="belongs to another program"):
        checkpoint.verify_checkpoint(path)
    file.unlink()
    with pytest.raises(UserError, match=rf"{file.name}: missing.*delete the folder {path} to resume"):
        checkpoint.verify_checkpoint(path)


def test_a_damaged_checkpoint_is_deleted_and_the_one_before_it_is_the_latest(saved, tmp_path):
    for step in (10, 20):
        shutil.copytree(saved[0] / "three" / STEP, tmp_path / f"step-{step:08d}")
    (tmp_path / "latest").write_text("step-00000020\n")
    damaged = checkpoint.latest_checkpoint(tmp_path)
    (damaged / FILE).write_text("{")
    with pytest.raises(UserError) as refused:
        checkpoint.verify_checkpoint(damaged)
    assert str(refused.value).endswith(f"; delete the folder {damaged} to resume from the checkpoint before it")
    shutil.rmtree(damaged)
    assert checkpoint.verify_checkpoint(checkpoint.latest_checkpoint(tmp_path)).step == 4
    assert step_of(checkpoint.latest_checkpoint(tmp_path)) == 10


def test_damaged_manifest_is_named(saved, tmp_path):
    path = copy_of(saved, tmp_path)
    text = (path / FILE).read_text()
    for content, message in (
        (text[: len(text) // 2], "damaged or cut short"),
        ('{"identity": 1}', "not a manifest"),
        (text.replace('"schema":1', '"schema":99'), "format 99"),
        (text.replace('"world"', '"worlds"'), "incomplete"),
    ):
        (path / FILE).write_text(content)
        with pytest.raises(UserError, match=message):
            checkpoint.verify_checkpoint(path)
    (path / FILE).unlink()
    with pytest.raises(UserError, match="never finished"):
        checkpoint.verify_checkpoint(path)
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.verify_checkpoint(tmp_path / "step-00000009")


def test_latest_and_pruning(saved, tmp_path):
    folder = tmp_path / "phase"
    assert checkpoint.latest_checkpoint(folder) is None
    for step in (10, 20, 30, 40, 50):
        shutil.copytree(saved[0] / "three" / STEP, folder / f"step-{step:08d}")
    (folder / ".tmp-step-00000060").mkdir()
    (folder / "step-00000070").mkdir()  # without a manifest: never finished
    assert step_of(checkpoint.latest_checkpoint(folder)) == 50
    (folder / "latest").write_text("step-00000040\n")
    assert step_of(checkpoint.latest_checkpoint(folder)) == 40
    gone = prune(folder, keep_last=1, keep_every=20)
    assert [path.name for path in gone[:2]] == ["step-00000010", "step-00000030"]
    remove(gone)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", *(f"step-{n:08d}" for n in (20, 40, 50))]
    assert [step_of(path) for path in checkpoints(folder)] == [20, 40, 50]
    (folder / "latest").write_text("step-00000099\n")
    assert step_of(checkpoint.latest_checkpoint(folder)) == 50
    # Killed while the checkpoint of a step was being replaced by a newer one of the same step.
    (folder / "step-00000050").rename(folder / ".tmp-old-step-00000050")
    assert checkpoint.verify_checkpoint(checkpoint.latest_checkpoint(folder)).step == 4


def kill_while_saving(tmp_path: Path, chance: random.Random, kills: int) -> None:
    """Kills two ranks that save without pause, at random moments; what `latest` names must be whole every time."""
    folder = tmp_path / "killed"
    steps = list(range(1, 400))
    for number in range(kills):
        action = {"stage": 3, "to": 1, "save_each": steps, "save": str(folder), "background": number % 2 == 1}
        before = checkpoint.latest_checkpoint(folder)
        started = before.stat().st_mtime_ns if before else 0
        logs = tmp_path / "logs"
        logs.mkdir(exist_ok=True)
        ranks = start_ranks(WORKER, [json.dumps([action]), str(tmp_path / "out.json")], 2, logs)
        try:
            limit = time.monotonic() + 300
            while (latest := checkpoint.latest_checkpoint(folder)) is None or latest.stat().st_mtime_ns == started:
                assert time.monotonic() < limit, (logs / "rank-0.log").read_text()
                assert all(rank.poll() is None for rank in ranks), (logs / "rank-0.log").read_text()
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.3))
            assert all(rank.poll() is None for rank in ranks)
            for rank in chance.sample(ranks, 2):
                rank.send_signal(signal.SIGKILL)
        finally:
            end(ranks)
        checkpoint.verify_checkpoint(checkpoint.latest_checkpoint(folder))
    assert results_of(tmp_path, [{"stage": 0, "load": str(checkpoint.latest_checkpoint(folder))}], 1)[0]["extra"]


def test_kill_while_saving_leaves_a_good_checkpoint(tmp_path):
    kill_while_saving(tmp_path, random.Random(1), 2)


@pytest.mark.long
def test_thirty_kills_while_saving_leave_a_good_checkpoint(tmp_path):
    kill_while_saving(tmp_path, random.Random(2), 30)


def test_copies_that_the_memory_of_a_node_cannot_take_are_refused_before_the_first_step(tmp_path):
    """Four files of each of two ranks, of 10¹² trained fp32 values with both moments."""
    block = SimpleNamespace(is_whole=False)
    part = SimpleNamespace(
        piece=SimpleNamespace(length=10**12, block=block), shared=False, owner=1, values=torch.ones(1)
    )
    engine = SimpleNamespace(shards=lambda: [part], tensor_size=1)
    copies = PeerCopies(tmp_path, 10, Ranks(world=2, local_world=2), None)
    with pytest.raises(
        UserError, match=r"training.peer_copies: .* GB free, and the copies take 96000.0 GB; make it larger"
    ):
        copies.require_room(engine)
