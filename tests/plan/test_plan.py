"""`onediff plan`: memory, traffic, time, and the search for the fastest way that fits."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import plan as benchmark
from onediff.cli import COMMANDS, chosen, main
from onediff.config.compose import load_run
from onediff.config.run import RunConfig
from onediff.data.manifest import Manifest, Shard, write_manifest
from onediff.errors import UserError
from onediff.model.onediff import OneDiffModel
from onediff.plan.architecture import sizes_of
from onediff.plan.flops import StepCost, flops_of
from onediff.plan.gpus import gpu_named
from onediff.plan.memory import memory_of
from onediff.plan.phase import PhasePlan, plan_phase, setup_of
from onediff.plan.report import command, lines
from onediff.plan.rows import rows_of
from onediff.plan.setup import Setup
from onediff.plan.suggest import suggest
from onediff.plan.traffic import traffic_of
from onediff.plan.walk import PARTS, Shape, Trained, walk

H100 = gpu_named("h100-80g")


@pytest.fixture(scope="module")
def paper() -> RunConfig:
    return load_run("configs/onediff_7b.yaml")


def planned(config: RunConfig, phase: str = "two", gpus: int = 32, **changes: object) -> PhasePlan:
    return plan_phase(config, phase, replace(setup_of(config, phase, gpus, 8), **changes), H100)


def test_each_stage_partitions_what_it_should(paper):
    by_stage = [planned(paper, stage=stage).memory for stage in (0, 1, 2, 3)]
    trained = 7_142_000_000
    assert by_stage[0].optimizer == pytest.approx(12 * trained, rel=0.01)
    assert by_stage[1].optimizer == pytest.approx(12 * trained / 32, rel=0.01)
    assert by_stage[2].gradients < by_stage[1].gradients / 10
    assert by_stage[2].weights == pytest.approx(2 * trained, rel=0.01)
    assert by_stage[3].weights == pytest.approx(2 * trained / 32, rel=0.01)
    assert [memory.gpu for memory in by_stage] == sorted((memory.gpu for memory in by_stage), reverse=True)


def test_a_context_group_divides_the_language_models_work_and_counts_as_data_parallel_for_zero(paper):
    one, four = (planned(paper, context=context) for context in (1, 4))
    assert (four.setup.data, four.setup.copies, four.setup.accumulation) == (8, 32, 4 * one.setup.accumulation)
    assert (four.memory.weights, four.memory.optimizer) == (one.memory.weights, one.memory.optimizer)
    assert four.flops == one.flops and one.traffic.context == 0 < four.traffic.context
    assert "C = 4, D = 8" in "\n".join(lines(four, H100)) and "parallel.context=4" in command([four], "x.yaml", [])
    sizes, shape, trained = sizes_of(paper.model), Shape(2, 4096, 4, 2, 1000), Trained(PARTS)
    whole, share = (walk(sizes, shape, trained, context=context) for context in (1, 4))
    found, own = flops_of(whole), flops_of(share)
    assert own["language"].model * 4 == found["language"].model and own["vision"] == found["vision"]
    cost = StepCost.of_phase(sizes, trained, context=4).flops(shape)
    assert cost == pytest.approx(sum(part.model for part in own.values()), rel=1e-3)
    kept = [sum(v.bytes for op in tape.ops if op.layer is not None for v in op.kept) for tape in (whole, share)]
    of_tower = sum(v.bytes for op in whole.ops if op.part == "vision" and op.layer is not None for v in op.kept)
    assert kept[1] - of_tower == pytest.approx((kept[0] - of_tower) / 4, rel=1e-3)
    with pytest.raises(UserError, match="32 attention heads cannot be divided among 64 ranks"):
        planned(paper, gpus=64, context=64)


def test_frozen_parts_have_neither_gradients_nor_optimizer_states(paper):
    one, two = (planned(paper, phase, stage=0) for phase in ("one", "two"))
    trained = sum(count for _, count in one.parameters.values())
    assert one.parameters["language"][1] == one.parameters["vision"][1] == 0
    assert one.memory.optimizer == 12 * trained < two.memory.optimizer / 50
    assert one.flops["vision"].backward == 0
    # Through the frozen language model only the gradient of its input is computed: as much as forwards, attention aside.
    assert one.flops["language"].backward == pytest.approx(one.flops["language"].forward, rel=0.1)
    assert two.flops["language"].backward == pytest.approx(2 * two.flops["language"].forward, rel=0.01)


def test_checkpointing_trades_activations_for_arithmetic(paper):
    none, selective, full = (planned(paper, checkpointing=mode, stage=3) for mode in ("none", "selective", "full"))
    assert none.memory.activations > selective.memory.activations > full.memory.activations
    again = [sum(part.recompute for part in plan.flops.values()) for plan in (none, selective, full)]
    assert again[0] == again[1] == 0 < again[2]
    assert none.memory.weights == full.memory.weights


def test_tensor_parallelism_splits_the_language_model_and_costs_traffic(paper):
    whole, cut = planned(paper, stage=1), planned(paper, stage=1, tensor=4, micro_batch=4)
    assert whole.traffic.tensor == 0 < cut.traffic.tensor
    language = whole.parameters["language"][0]
    assert whole.memory.weights - cut.memory.weights == pytest.approx(2 * language * 3 / 4, rel=0.001)
    assert cut.parameters == whole.parameters
    with pytest.raises(UserError, match="32 attention heads cannot be split into 3"):
        planned(paper, tensor=3)


def test_sequence_parallelism_needs_less_memory_and_traffic(paper):
    def cut(**changes: object) -> PhasePlan:
        return planned(paper, stage=3, tensor=4, micro_batch=4, **{"checkpointing": "none", **changes})

    apart, shared = cut(), cut(sequence=True)
    assert shared.memory.weights == apart.memory.weights
    assert shared.memory.activations < 0.8 * apart.memory.activations
    assert shared.traffic.tensor < 0.6 * apart.traffic.tensor
    # Of a layer that is computed again only the input stays: a quarter of it.
    full = [cut(checkpointing="full", sequence=sequence).memory.activations for sequence in (False, True)]
    assert full[1] < 0.7 * full[0]
    whole = planned(paper)
    assert planned(paper, sequence=True) == replace(whole, setup=replace(whole.setup, sequence=True))
    config = load_run("configs/onediff_7b.yaml", ["parallel.tensor=4", "parallel.sequence=true"])
    assert setup_of(config, "two", 32, 8).sequence
    assert "sequence parallel" in "\n".join(lines(shared, H100))


@pytest.mark.parametrize(
    ("sequence", "checkpointing", "sums", "others"),
    [
        (False, "none", 22, 0),
        (False, "selective", 25, 0),
        (False, "full", 25, 0),
        (True, "none", 1, 26),
        (True, "selective", 1, 35),
        (True, "full", 1, 35),
    ],
)
def test_a_tensor_groups_traffic_equals_that_counted_in_real_processes(sequence, checkpointing, sums, others):
    """In a step of the demo at T = 2: all-reduces the size of all rows, and gathers and scatters of that size."""
    sizes, shape = sizes_of(load_run("configs/demo.yaml").model), Shape(8, 96, 16, 8, 320)
    tape = walk(sizes, shape, Trained(PARTS), itemsize=4, tensor=2, sequence=sequence)
    setup = Setup(2, 2, 2, 0, 8, 8, bf16=False, checkpointing=checkpointing, sequence=sequence)
    rows, head = 8 * 96 * 128 * 4, 320 * 128 * 4 + 3 * 320 * 4
    assert traffic_of(tape, sizes, shape, setup).tensor == sums * rows + others * rows // 2 + head


def test_offloaded_state_is_on_the_host(paper):
    here, there = planned(paper, stage=3), planned(paper, stage=3, offload_optimizer="cpu")
    assert there.memory.optimizer == 0 < here.memory.optimizer
    assert here.memory.host == 0 < there.memory.host
    assert there.duration.expected > here.duration.expected
    disk = planned(paper, stage=3, offload_optimizer="nvme")
    assert there.memory.nvme == 0 < disk.memory.host < there.memory.host
    trained = sum(trained for _, trained in disk.parameters.values())
    assert disk.memory.nvme == pytest.approx(12 * trained / disk.setup.data, rel=1e-6)
    assert disk.memory.gpu == there.memory.gpu
    assert disk.duration.expected > there.duration.expected


def test_a_checkpoint_written_in_the_background_is_copied_to_the_host(paper):
    def copied(phase: str = "two", **changes: object) -> int:
        plan = planned(paper, phase, **changes)
        assert plan.memory.host_copy in (0, pytest.approx(plan.checkpoint_bytes / plan.setup.world, rel=1e-4))
        return plan.memory.host_copy

    # Every rank its share of all: 12 bytes of what trains; of what is frozen, the weights.
    assert copied("one") < copied("two") / 5
    assert copied(stage=0) == copied(stage=3) == copied(offload_optimizer="cpu") == copied(tensor=4) > 0
    assert copied(stage=3, offload_optimizer="nvme") == copied(save_in_background=False) == 0
    waits = load_run("configs/onediff_7b.yaml", ["training.save_in_background=false"])
    assert planned(waits).memory.host_copy == 0
    copies = planned(load_run("configs/onediff_7b.yaml", ["training.peer_copies={repeat_at_most: 10}"])).memory
    assert copies.peer_copies == 5 * copies.host_copy > 0


def test_the_settings_of_gradient_reduction_count():
    """`reduce_in` and the keys of `parallel.deepspeed` that cost memory or traffic."""

    def with_keys(*words: str) -> PhasePlan:
        return planned(load_run("configs/onediff_7b.yaml", words), stage=3)

    plain, wide = with_keys(), with_keys("parallel.reduce_in=fp32")
    assert wide.traffic.reduce == 2 * plain.traffic.reduce and wide.traffic.gather == plain.traffic.gather
    small = with_keys("parallel.deepspeed={reduce_bucket_size: 1000, stage3_max_live_parameters: 1000}")
    embedding = 32_000 * 4096  # gathered whole, whatever the limit
    saved = 2 * (200_000_000 + 1_000_000_000 - embedding)
    assert plain.memory.buffers - small.memory.buffers == pytest.approx(saved, rel=1e-4)
    kept = with_keys("parallel.deepspeed={stage3_param_persistence_threshold: 1000000000}")
    assert kept.traffic.gather == 0 < plain.traffic.gather


def test_micro_batches_stay_until_the_next_step_has_begun(paper):
    """Those of two steps, and the one that is copied ahead; images are copied as bytes."""
    once, twice = (planned(paper, stage=3, micro_batch=1, global_batch=32 * steps, tensor=1) for steps in (1, 2))
    of_one = (twice.memory.buffers - once.memory.buffers) / 2
    assert of_one == pytest.approx(round(once.rows.images) * 3 * 336**2, rel=0.1)


def test_time_assumes_images_of_usual_size_and_memory_the_largest(paper):
    tiles = ("model.vision.image.fit=tiles", "model.vision.image.max_tiles=8", "data.max_tokens=12000")
    many, few = (
        load_run("configs/onediff_7b.yaml", [*tiles, *more]) for more in ((), ("model.vision.image.max_tiles=4",))
    )
    assert sizes_of(many.model).views == 9 and sizes_of(many.model).usual().views == 1 + 4
    assert planned(many).flops == planned(few).flops
    assert planned(many).memory.gpu > planned(few).memory.gpu


def test_the_moment_of_peak_memory_is_named(paper):
    moments = {stage: planned(paper, gpus=64, stage=stage, micro_batch=2).memory for stage in (1, 3)}
    assert moments[1].moment == "while the optimizer steps" and moments[1].activations == 0
    assert moments[3].moment == "in the backward pass" and moments[3].activations > 0
    assert planned(paper, stage=2).memory.moment in "\n".join(lines(planned(paper, stage=2), H100))


def test_between_nodes_a_data_group_shares_its_ports():
    config = load_run("configs/onediff_7b.yaml")
    near, far = planned(config, gpus=8, micro_batch=2), planned(config, gpus=32)
    assert near.traffic.data_between == 0 < near.traffic.data_inside
    assert far.traffic.data_between == pytest.approx(far.traffic.data_inside / 8, rel=1e-6)


def test_accumulation_keeps_gradients_between_micro_batches():
    sizes = sizes_of(load_run("configs/demo.yaml").model)
    tape = walk(sizes, Shape(8, 96, 16, 8, 320), Trained(PARTS), itemsize=4)
    once = Setup(1, 1, 1, 0, 8, 8, bf16=False, checkpointing="none")
    trained = sum(weight.numel for weight in tape.weights)
    assert memory_of(tape, once).gradients < memory_of(tape, replace(once, global_batch=16)).gradients == 4 * trained


def test_steps_come_from_manifests_and_else_from_published_counts(paper, tmp_path):
    rows = rows_of(paper.model, paper.data, paper.phases["one"])
    assert (rows.steps, rows.steps_from) == (-(-558128 // 256), "published counts")
    assert (rows.images, rows.pairs) == (2, 1)  # coupled
    folder = tmp_path / "train"
    folder.mkdir()
    write_manifest(Manifest(folder, "llava-558k", "train", (Shard("0.tar", 2561, 10),)))
    config = load_run("configs/onediff_7b.yaml", [f"data.sets.llava-558k={tmp_path}"])
    rows = rows_of(config.model, config.data, config.phases["one"])
    assert rows.steps == 11 and rows.steps_from == "manifests"


def whole_run(plans) -> float:
    """Expected seconds."""
    return sum(plan.rows.steps * plan.duration.expected for plan in plans)


def test_the_suggestion_fits_divides_the_batch_and_is_not_slower(paper):
    plans = suggest(paper, H100, 16, 8, 128)
    assert [plan.name for plan in plans] == ["one", "two"]
    for plan in plans:
        setup = plan.setup
        assert plan.fits
        assert setup.global_batch == paper.phases[plan.name].global_batch
        assert setup.global_batch == setup.micro_batch * setup.accumulation * setup.data
    as_it_is = [planned(paper, plan.name, 16, micro_batch=2) for plan in plans]
    assert whole_run(plans) <= whole_run(as_it_is)
    assert len({(p.setup.tensor, p.setup.stage, p.setup.offload_optimizer) for p in plans}) == 1


@pytest.mark.parametrize("gpus", [8, 16])
def test_the_printed_command_runs_the_suggested_settings(gpus, paper):
    said = ["data.max_tokens=1800", "phases.one.mix={llava-558k: 1}", "parallel.offload_parameters=cpu"]
    modes = {"one": "selective", "two": "full"}
    plans = [planned(paper, name, gpus, stage=2, micro_batch=2, checkpointing=mode) for name, mode in modes.items()]
    words = shlex.split(command(plans, "configs/onediff_7b.yaml", said).splitlines()[-1])
    assert words[0] == "onediff"
    name = chosen(words[1:])
    parser = argparse.ArgumentParser()
    import_module(COMMANDS[name].module).add_arguments(parser)
    args = parser.parse_intermixed_args(words[1 + len(name.split()) :])
    if gpus == 8:
        assert (name, args.processes) == ("train", 8)
    else:
        assert (name, args.nodes) == ("launch submit", "2")
    config = load_run(args.config, args.overrides)
    assert config.data.max_tokens == 1800 and config.phases["one"].mix == {"llava-558k": 1}
    assert [setup_of(config, plan.name, gpus, 8) for plan in plans] == [plan.setup for plan in plans]


def test_if_nothing_fits_the_suggestion_says_so(paper):
    with pytest.raises(UserError, match="no setting fits 1 × h100-80g"):
        suggest(paper, replace(H100, memory_gb=12.0), 1, 1, 128)


def test_the_command_prints_every_phase_and_writes_every_figure(tmp_path, capsys):
    out = tmp_path / "plan.json"
    words = ["phases.two.micro_batch=2", "--out", str(out)]
    assert main(["plan", "configs/onediff_7b.yaml", "--gpus", "64", *words]) == 0
    printed = capsys.readouterr().out
    for word in ("phase one", "phase two", "GPU-hours", "MFU", "images/s", "checkpoint", "fits"):
        assert word in printed
    figures = json.loads(out.read_text())
    assert [phase["name"] for phase in figures["phases"]] == ["one", "two"]
    memory = figures["phases"][1]["memory"]
    assert memory["moment"] == "in the backward pass" and memory["host_copy"] > 0
    assert "peak in the backward pass: weights" in printed and "to write a checkpoint in the background" in printed
    kinds = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
    assert memory["gpu"] == sum(memory[kind] for kind in kinds)


def test_adapters_and_last_layers_are_counted_as_trained(capsys):
    words = ["phases.two.lora.rank=16", "phases.two.vision_last=4"]
    assert main(["plan", "configs/onediff_7b.yaml", "--gpus", "32", *words]) == 0
    printed = capsys.readouterr().out
    assert "6,778.4 M parameters,      40.0 M train" in printed
    assert "as if all" not in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "32", "--gpu", "h100"], "--gpu h100: unknown GPU (did you mean 'h100-80g'"),
        (["--gpus", "12"], "--gpus 12: not a multiple of the 8 GPUs of a node"),
        ([], "give either --gpus or --nodes"),
        (["--gpus", "32", "phases.two.micro_batch=32"], "phases.two.global_batch: 128 cannot be split"),
        (["--gpus", "8", "model.vision.config.model_type=resnet"], "of type resnet are not supported (known: aimv2"),
        (["--gpus", "8", "parallel.tensor=16"], "parallel.tensor: 8 GPUs cannot be split into groups of 16"),
    ],
)
def test_an_invalid_request_is_refused_with_one_line(words, message, capsys):
    assert main(["plan", "configs/onediff_7b.yaml", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_phase_that_does_not_fit_is_named_and_the_exit_code_says_so(capsys):
    words = ["plan", "configs/onediff_7b.yaml", "--gpus", "1", "--per-node", "1", "--gpu", "l4-24g"]
    assert main(words) == 1
    assert "does not fit; --suggest" in capsys.readouterr().out


# A configuration that training refuses, and the line.
REFUSED = {
    "model.vision.config.hiden_size=64": "model.vision.config: unknown key 'hiden_size' (did you mean 'hidden_size'?)",
    "model.language.config.vocab_sise=64": "model.language.config: unknown key 'vocab_sise' (did you mean 'vocab_size'?)",
    "model.language.config.model_type=lama": "model.language.config.model_type: unknown 'lama' (did you mean 'llama'?)",
    "model.vision.config.model_type=bert": "model.vision: models of type bert are not supported (did you mean",
    "model.vision.image.size=70": "model.vision.image.size: 70, but this tower takes images of 64 pixels; use that",
    "model.vision.levels=[1,5]": "model.vision.levels: 5 is outside the tower's layers 1 to 4",
    "model.vision.output_level=5": "model.vision.output_level: 5 is outside the tower's 4 layers",
    "model.language.config.num_key_value_heads=3": "model.language: 4 attention heads cannot share 3 key/value heads",
    "model.language.config.hidden_act=geluu": "model.language.config.hidden_act: unknown 'geluu' (did you mean 'gelu'?)",
}


@pytest.mark.parametrize(("override", "line"), REFUSED.items())
def test_what_training_refuses_planning_refuses_in_the_same_line(override, line, capsys):
    words = ["configs/demo.yaml", "model=models/tiny", override]
    assert main(["plan", *words, "--gpus", "1"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"onediff: error: {line}")
    with pytest.raises(UserError) as refused:
        OneDiffModel(load_run(words[0], words[1:]).model)
    assert told == f"onediff: error: {refused.value}\n"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("phases.two.vision_last=9", "phases.two.vision_last: 9, but the vision tower has 4 layers"),
        ("phases.two.lora.targets=[q_prj]", "phases.two.lora.targets: the language model has no layer 'q_prj'"),
        (
            "parallel.tensor=3; phases.warm-up.matrices=adamw; phases.two.matrices=adamw",
            "parallel.tensor: 4 attention heads cannot be split into 3 equal parts",
        ),
        (
            "parallel.deepspeed.reduce_bucket=1",
            "parallel.deepspeed: DeepSpeed's zero_optimization has no 'reduce_bucket'",
        ),
        (
            "phases.one.parallel={deepspeed: {reduce_bucket: 1}}",
            "phases.one.parallel.deepspeed: DeepSpeed's zero_optimization has no 'reduce_bucket'",
        ),
        (
            "phases.two.evaluate_every=5; phases.two.best={metric: evaluation/CIDr}",
            "phases.two.best.metric: no 'evaluation/CIDr' (did you mean 'evaluation/CIDEr'?)",
        ),
        (
            "evaluation.metrics=[sider]",
            "evaluation.metrics: no metric 'sider' (did you mean 'cider'?)",
        ),
        ("evaluation.metrics=[bertscore]", "metric 'bertscore': name the model after a colon"),
    ],
)
def test_planning_prepares_every_phase_as_training_does(override, line, capsys):
    assert main(["plan", "configs/demo.yaml", "model=models/tiny", *override.split("; "), "--gpus", "3"]) == 2
    assert line in capsys.readouterr().err


def test_without_torch_a_plan_is_made_and_says_what_was_not_checked():
    code = (
        "import sys; sys.modules |= {'torch': None, 'transformers': None}; from onediff.cli import main; "
        "sys.exit(main(['plan', 'configs/onediff_7b.yaml', '--gpus', '32']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "GPU-hours" in done.stdout
    assert done.stderr.startswith(
        "onediff plan: torch is not installed, so only sizes are checked: no keys of model.vi"
    )


def test_planned_memory_is_within_eight_per_cent_of_measured_memory():
    """Compares the committed table of `benchmarks/plan.py` with the current plan."""
    rows = json.loads(Path(benchmark.__file__).with_name("results").joinpath("plan.json").read_text())["rows"]
    assert len(rows) == 68
    for row in rows:
        ratio = benchmark.planned(row)["peak"] / row["measured"]["peak"]
        assert ratio == pytest.approx(1, abs=0.08), {key: row[key] for key in row if key not in ("planned", "measured")}
