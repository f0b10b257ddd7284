"""Tensor parallelism × ZeRO: the same losses, gradient norms and weights for every topology, with real processes."""

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from parallel_worker import ARCHITECTURES
from places import SUPPORT
from processes import run_ranks
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from onediff.errors import UserError
from onediff.model.families import check_divisible, check_sequence
from onediff.model.lora import is_adapter
from onediff.parallel.tensor import padded_vocabulary
from onediff.training.checkpoint import read_manifest, read_weights

TOPOLOGIES = ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 4))
WORKER = SUPPORT / "parallel_worker.py"
LORA = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "o_proj", "down_proj"]}


def results_of(folder: Path, tensor: int, world: int, actions: list[dict], timeout: float = 400) -> list[dict]:
    """Runs the actions at T = `tensor` in `world` ranks; one result per action."""
    folder.mkdir(exist_ok=True)
    out = folder / "results.json"
    run_ranks(WORKER, [str(tensor), json.dumps(actions), str(out)], world, timeout)
    return json.loads(out.read_text())


def same(run: dict, reference: dict, tolerance: float = 1e-5) -> None:
    assert run["losses"] == pytest.approx(reference["losses"], abs=tolerance)
    assert run["norms"] == pytest.approx(reference["norms"], rel=tolerance)


@pytest.fixture(scope="module")
def runs(real_data, tmp_path_factory) -> tuple[Path, list[dict], list[dict], list[dict]]:
    """The same work at T × D = 1 × 1, at 2 × 2, and at 1 × 1 resumed from the checkpoints of 2 × 2."""
    folder = tmp_path_factory.mktemp("runs")
    real = str(real_data / "stories260K")

    def actions(name: str, other: str) -> list[dict]:
        work = [
            {"model": real, "stage": 3, "to": 4, "save": f"{folder}/{name}/real", "then": 6, "chunk": 20},
            {"model": "qwen2", "stage": 1, "to": 4, "save": f"{folder}/{name}/qwen2", "then": 6},
            {"model": "qwen3", "stage": 0, "to": 4},
            {"model": "mistral", "stage": 2, "to": 4},
            {"model": real, "stage": 3, "to": 4, "lora": LORA, "save": f"{folder}/{name}/lora"},
            {"model": "qwen2", "stage": 1, "to": 4, "lora": LORA},
            {"model": "qwen3", "stage": 3, "to": 4, "sequence": True},
            {"model": real, "stage": 1, "to": 4, "sequence": True, "lora": LORA},
            {"model": real, "stage": 3, "export": f"{folder}/{name}/export", "shard_bytes": 200_000},
            {"model": "llama", "stage": 2, "to": 1, "trap": True},
            {"model": "llama", "stage": 2, "to": 1},
            *(
                {"model": "llama", "stage": 2, "to": 4, "checkpointing": mode, "sequence": sequence}
                for mode in ("selective", "full")
                for sequence in (False, True)
            ),
        ]
        if other:
            step = "step-00000004"
            work += [
                {"model": real, "stage": 1, "load": f"{folder}/{other}/real/{step}", "from": 4, "to": 6},
                {"model": "qwen2", "stage": 3, "load": f"{folder}/{other}/qwen2/{step}", "from": 4, "to": 6},
            ]
        return work

    alone = results_of(folder / "alone", 1, 1, actions("alone", ""))
    spread = results_of(folder / "spread", 2, 4, actions("spread", "alone"))
    back = results_of(folder / "back", 1, 1, actions("back", "spread")[-2:])
    return folder, alone, spread, back


def test_losses_and_gradient_norms_do_not_depend_on_the_topology(runs):
    _, alone, spread, _ = runs
    for number in range(8):
        same(spread[number], alone[number])


def test_adapters_train_and_their_base_weights_do_not(runs, real_data):
    folder, alone, *_ = runs
    assert alone[4]["losses"] != alone[0]["losses"][:4]
    stored = load_file(real_data / "stories260K" / "model.safetensors")
    for where in ("alone", "spread"):
        path = folder / where / "lora" / "step-00000004"
        parameters = read_manifest(path).parameters
        with_moments = {name for name, parameter in parameters.items() if "exp_avg" in parameter.states}
        assert with_moments == {name for name in parameters if is_adapter(name) or name.startswith("projector")}
        merged = dict(read_weights(path))
        for key, weight in stored.items():
            changed = not torch.equal(merged[f"language.{key}"], weight)
            assert changed is (key.split(".")[-2] in LORA["targets"]), key


def test_weights_do_not_depend_on_the_topology(runs):
    folder, *_ = runs
    for name in ("real", "qwen2", "lora"):
        alone, spread = (dict(read_weights(folder / where / name / "step-00000004")) for where in ("alone", "spread"))
        assert alone.keys() == spread.keys()
        for key, weight in alone.items():
            torch.testing.assert_close(spread[key], weight, rtol=0, atol=1e-5)


def test_checkpoints_resume_at_another_tensor_size_and_stage(runs):
    _, alone, spread, back = runs
    for later, earlier in ((spread[-2:], alone), (back, spread)):
        for run, reference in zip(later, earlier, strict=False):
            assert run["losses"] == pytest.approx(reference["losses"][4:], abs=1e-5)


def test_recomputed_values_equal_the_original_ones(runs):
    """Sums over the group are recomputed too, from kept or recomputed products, with and without sequence parallelism."""
    _, alone, spread, _ = runs
    for number in range(11, 15):
        same(spread[number], alone[11], 2e-6)


def test_norm_without_the_attribute_is_wrong(runs):
    """DeepSpeed counts a parameter without `tensor_model_parallel` on only one rank, a trap that `_note` avoids."""
    _, alone, spread, _ = runs
    same(spread[10], alone[10])
    assert spread[9]["norms"][0] < 0.95 * alone[9]["norms"][0]


def test_export_is_byte_equal_and_loads(runs, real_data):
    from safetensors import safe_open

    folder, *_ = runs
    exports = [folder / where / "export" for where in ("alone", "spread")]
    files = sorted(path.name for path in exports[0].glob("*.safetensors"))
    assert len(files) > 1
    for file in files:
        assert (exports[0] / file).read_bytes() == (exports[1] / file).read_bytes()
    with safe_open(real_data / "stories260K" / "model.safetensors", "pt") as original:
        stored = {name: original.get_tensor(name) for name in original.keys()}  # noqa: SIM118
    (exports[1] / "config.json").write_text((real_data / "stories260K" / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(exports[1])
    reference = AutoModelForCausalLM.from_pretrained(real_data / "stories260K")
    assert set(stored) <= set(dict(loaded.named_parameters()))
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, reference(ids).logits)


@pytest.mark.long
@pytest.mark.parametrize("model", ["stories260K", *ARCHITECTURES])
def test_twenty_steps_at_every_topology_and_stage(model, real_data, tmp_path):
    """(T, D) of 1, 2, 4 × ZeRO 0 … 3, each resumed from another one's checkpoint, compared with one process."""
    name = str(real_data / model) if model == "stories260K" else model
    actions = [
        {"model": name, "stage": stage, "to": 20, "save": f"{tmp_path}/{{at}}/{stage}", "then": 24}
        for stage in range(4)
    ]
    reference = None
    previous = None
    for tensor, data in TOPOLOGIES:
        at = f"{tensor}x{data}"
        todo = [{**action, "save": action["save"].format(at=at)} for action in actions]
        if previous:
            todo += [
                {
                    "model": name,
                    "stage": (stage + 1) % 4,
                    "load": f"{tmp_path}/{previous}/{stage}/step-00000020",
                    "from": 20,
                    "to": 24,
                }
                for stage in range(4)
            ]
        results = results_of(tmp_path, tensor, tensor * data, todo, timeout=900)
        reference = reference or results[0]
        weights = dict(read_weights(tmp_path / "1x1" / "0" / "step-00000020"))
        for stage, run in enumerate(results[:4]):
            same(run, reference)
            for key, weight in read_weights(tmp_path / at / str(stage) / "step-00000020"):
                torch.testing.assert_close(weight, weights[key], rtol=0, atol=1e-5)
        for run in results[4:]:
            assert run["losses"] == pytest.approx(reference["losses"][20:], abs=1e-5)
        previous = at


@pytest.mark.long
def test_every_checkpoint_resumes_at_every_topology_and_stage(real_data, tmp_path):
    """Saved at each (T, D) × ZeRO stage and resumed at each: the same losses, bit-identical for the same topology.

    The weights that each topology loaded are exported as well: the same bytes everywhere, and the original's logits.
    """
    model = str(real_data / "stories260K")
    places = [(place, stage) for place in TOPOLOGIES for stage in range(4)]
    curves, worst = {}, 0.0
    for tensor, data in TOPOLOGIES:
        actions = [
            {"model": model, "stage": s, "to": 6, "save": f"{tmp_path}/{tensor}x{data}/{s}", "then": 9}
            for s in range(4)
        ]
        actions += [{"model": model, "stage": 3, "export": f"{tmp_path}/{tensor}x{data}/export"}]
        results = results_of(tmp_path, tensor, tensor * data, actions, timeout=900)
        curves |= {((tensor, data), stage): run["losses"][6:] for stage, run in enumerate(results[:4])}
    reference = AutoModelForCausalLM.from_pretrained(model)
    ids = torch.arange(1, 40)[None]
    for tensor, data in TOPOLOGIES:
        export = tmp_path / f"{tensor}x{data}" / "export"
        shutil.copy(Path(model) / "config.json", export)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(export)(ids).logits, reference(ids).logits)
    for place in TOPOLOGIES:
        tensor, data = place
        actions = [
            {
                "model": model,
                "stage": stage,
                "load": f"{tmp_path}/{saved[0][0]}x{saved[0][1]}/{saved[1]}/step-00000006",
                "from": 6,
                "to": 9,
            }
            for stage in range(4)
            for saved in places
        ]
        results = iter(results_of(tmp_path, tensor, tensor * data, actions, timeout=3000))
        for stage in range(4):
            for saved in places:
                losses = next(results)["losses"]
                assert losses == pytest.approx(curves[saved], abs=1e-5), (saved, place, stage)
                worst = max(worst, *(abs(a - b) for a, b in zip(losses, curves[saved], strict=True)))
                if saved == (place, stage):
                    assert losses == curves[saved]
        print(f"{len(places)} checkpoints at T={tensor} D={data}, ZeRO 0 to 3: worst so far {worst:.1e}", flush=True)


def test_a_model_without_sequence_parallelism_is_named():
    check_sequence(AutoConfig.for_model(**ARCHITECTURES["qwen3"]))
    with pytest.raises(UserError, match=r"parallel.sequence: supports llama, .* not gemma2 models"):
        check_sequence(AutoConfig.for_model("gemma2"))


def test_sizes_that_cannot_be_split_are_named():
    config = AutoConfig.for_model(**ARCHITECTURES["llama"])
    for tensor, message in ((3, "8 attention heads"), (8, "4 key/value heads")):
        with pytest.raises(UserError, match=message):
            check_divisible(config, tensor)
    with pytest.raises(UserError, match="models of type gpt2 do not support tensor parallelism"):
        check_divisible(AutoConfig.for_model("gpt2"), 2)
    for size, parts in itertools.product((96, 97, 98), (1, 2, 4)):
        padded = padded_vocabulary(size, parts)
        assert padded % parts == 0
        assert padded == parts * math.ceil(size / parts)
