"""`onediff plan --rehearse`: one rank without weights and without other ranks does what real ranks do, and finds faults."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import forked
import pytest
from places import HOUSE, SUPPORT
from processes import run_ranks
from small_run import overrides

from onediff.cli import main
from onediff.config.compose import load_run
from onediff.errors import UserError
from onediff.plan.gpus import gpu_named
from onediff.plan.phase import plan_phase, setup_of
from onediff.plan.setup import Setup
from onediff.rehearsal.compare import disagreement
from onediff.rehearsal.report import data_traffic
from onediff.rehearsal.role import Played, Role
from onediff.rehearsal.whole import peers_of, place

DEMO = str(HOUSE / "configs" / "demo.yaml")


def small(tmp_path, **more):
    """A small version of the demo with two micro-batches per step, ZeRO-3 in its last phase and ZeRO-1 before."""
    words = overrides(tmp_path, steps=1, rows=8, **more)
    return [*words, "parallel.zero_stage=1", "phases.two.parallel.zero_stage=3", "data.max_tokens=96"]


def rehearsed(tmp_path, rank, world, words, config=DEMO, per_node=None) -> list[Played]:
    out = tmp_path / "rehearsed.json"
    role = Role(config, words, rank, world, per_node or world, False, str(out))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    script = HOUSE / "onediff" / "rehearsal" / "forks.py"
    process = forked.start([str(script), json.dumps([asdict(role)])], environment, tmp_path / "log", tmp_path / "log")
    process.wait(1200)
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    return [Played.of(values) for values in json.loads(out.read_text())]


@pytest.mark.parametrize("tensor", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_rehearsed_rank_sends_and_holds_the_same_as_among_real_ranks(tmp_path, tensor):
    """The same collectives, shapes and bytes in the same order, over gloo with real tensors and without both."""
    words = small(tmp_path, **{"parallel.tensor": tensor})
    run_ranks(SUPPORT / "rehearsal_worker.py", [DEMO, str(tmp_path), *words], 2)
    real = [Played.of(values) for values in json.loads((tmp_path / "1.json").read_text())]
    alone = rehearsed(tmp_path, 1, 2, words)
    for one, other in zip(alone, real, strict=True):
        assert one.fault is None
        assert one.building == other.building
        assert one.step == other.step and one.step
        assert (one.times, one.lanes, one.rows) == (other.times, other.lanes, other.rows)
        assert replace(one.held, peak=0) == replace(other.held, peak=0)
        assert one.held.peak == pytest.approx(other.held.peak, rel=0.05)


def announced(folder: Path, monkeypatch, name: str, body: str) -> None:
    """Installs an objective from another package, the class `Mine` whose `__call__` is `body`."""
    source = (
        "from onediff.model.language import target_losses\n\n\n"
        "class Mine:\n"
        "    def __init__(self, phase, training):\n        pass\n\n"
        f"    def __call__(self, model, batch):\n{body}"
    )
    (folder / f"{name}.py").write_text(source)
    about = folder / f"{name}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[onediff.objectives]\n{name} = {name}:Mine\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{HOUSE}")


def test_a_shape_that_does_not_fit_is_found(tmp_path, monkeypatch, capsys):
    body = "        return model.embed(batch) @ batch.token_ids.new_zeros(3, 3).float()\n"
    announced(tmp_path, monkeypatch, "wide", body)
    words = [*small(tmp_path), "phases.warm-up.objective=wide"]
    assert main(["plan", DEMO, *words, "--per-node", "1", "--rehearse", "0/1"]) == 2
    found = capsys.readouterr().err.strip().splitlines()
    told = next(line for line in found if line.startswith("onediff plan: "))
    assert re.fullmatch(r"onediff plan: phase warm-up: rank 0: RuntimeError: .* \(onediff.py:\d+\)", told)


def test_ranks_that_would_wait_forever_are_found():
    gather, tensor = ["all_gather", "data", [4], "float32", 16], ["all_reduce", "tensor", [4], "float32", 16]
    one, other = Played("two", step=[gather, tensor, gather]), Played("two", step=[gather, gather])
    assert disagreement(one, other, (0, 2), same_rows=False) is None
    told = disagreement(one, other, (0, 1), same_rows=True)
    assert told == (
        "phase two: ranks would wait forever: in a step, at collective 2, rank 0 makes all_reduce over tensor of [4] "
        "float32 and rank 1 makes all_gather over data of [4] float32"
    )
    told = disagreement(one, replace(other, step=[gather]), (0, 2), same_rows=False)
    assert told and told.endswith("and rank 2 makes none")


def test_the_peers_are_a_rank_with_other_rows_and_one_of_the_tensor_group():
    assert peers_of(5, 64, 1) == {"data": 6}
    assert peers_of(15, 16, 8) == {"data": 7, "tensor": 8}
    assert peers_of(0, 1, 1) == {}
    assert peers_of(7, 16, 2, 2) == {"data": 11, "tensor": 6, "context": 5}
    for text in ("64/64", "1", "a/4"):
        with pytest.raises(UserError, match="--rehearse"):
            place(text)


@pytest.mark.long
def test_an_objective_that_skips_the_tower_for_text_is_found(tmp_path, monkeypatch, capsys):
    """Under ZeRO-3, a rank with only text would gather other weights than the rest."""
    body = (
        "        words = model.language.get_input_embeddings()(batch.token_ids)\n"
        "        embeds = model.embed(batch) if len(batch.images) else words\n"
        "        return target_losses(model.language, embeds, batch)\n"
    )
    announced(tmp_path, monkeypatch, "lazy", body)
    words = [*small(tmp_path), "phases.two.objective=lazy"]
    assert main(["plan", DEMO, *words, "--per-node", "2", "--rehearse", "0/2"]) == 2
    assert "onediff plan: phase two: ranks would wait forever: in a step" in capsys.readouterr().err


NARROW = [
    "model.language.config.hidden_size=256",
    "model.language.config.intermediate_size=512",
    "model.language.config.num_hidden_layers=6",
    "model.language.config.num_attention_heads=8",
    "model.language.config.num_key_value_heads=8",
    "model.vision.config.hidden_size=128",
    "model.vision.config.intermediate_size=256",
    "model.vision.config.num_attention_heads=4",
    "model.delta.width=128",
    "model.delta.heads=4",
    "model.delta.intermediate=256",
    "parallel.deepspeed={stage3_max_live_parameters: 2000000, stage3_max_reuse_distance: 2000000, "
    "stage3_prefetch_bucket_size: 300000, stage3_param_persistence_threshold: 1000}",
]


@pytest.mark.long
@pytest.mark.parametrize(("stages", "within"), [((3, 3), "world"), ((3, 3), "node"), ((1, 2), "world")])
@pytest.mark.parametrize("name", ["onediff_7b", "onediff_70b"])
def test_a_narrow_models_traffic_matches_the_plan(tmp_path, name, stages, within):
    """Weights and gradients of a step, within 5 %, for frozen and trained language models with checkpointing."""
    words = [*NARROW, "training.activation_checkpointing=full", "parallel.sequence=false"]
    words += ["parallel.tensor=2"] * (within == "node")
    for phase, stage in zip(("one", "two"), stages, strict=True):
        words += [f"phases.{phase}.parallel.zero_stage={stage}", f"phases.{phase}.parallel.shard_within={within}"]
    file = str(HOUSE / "configs" / f"{name}.yaml")
    config = load_run(file, words)
    for played in rehearsed(tmp_path, 9, 16, words, file, per_node=8):
        assert played.fault is None
        setup = setup_of(config, played.name, 16, 8)
        planned = plan_phase(config, played.name, setup, gpu_named("h100-80g")).traffic
        weights, gradients = data_traffic(played, setup)
        assert weights == pytest.approx(planned.gather, rel=0.05)
        assert gradients == pytest.approx(planned.reduce, rel=0.05)


@pytest.mark.long
@pytest.mark.parametrize(("name", "world"), [("onediff_7b", 64), ("onediff_70b", 512)])
def test_a_large_run_is_rehearsed_whole(tmp_path, name, world):
    """The plan's memory is within 10 % of the rehearsed memory. docs/plan.md says how long it takes."""
    config = str(HOUSE / "configs" / f"{name}.yaml")
    out = tmp_path / "plan.json"
    assert main(["plan", config, "--rehearse", f"{world // 2 + 1}/{world}", "--out", str(out)]) == 0
    made = json.loads(out.read_text())
    for plan, phase in zip(made["phases"], made["rehearsal"]["phases"], strict=True):
        held = phase["held"]
        assert plan["memory"]["gpu"] == pytest.approx(held["peak"], rel=0.1)
        weights, gradients = data_traffic(Played.of(phase), Setup(**plan["setup"]))
        assert weights == pytest.approx(plan["traffic"]["gather"], rel=0.05)
        assert gradients == pytest.approx(plan["traffic"]["reduce"], rel=0.05)
        assert plan["memory"]["weights"] == pytest.approx(held["weights"], rel=0.01)
        assert plan["memory"]["optimizer"] == pytest.approx(held["optimizer"], rel=0.01)
