"""Layers that multiply in fp8: errors that fp8's mantissas imply and no other, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import fp8_worker
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import batch, rows, tiny_model
from processes import run_ranks
from small_run import metrics, render
from torch import Tensor, nn

import onediff
from benchmarks.counters import Counted
from onediff.config.model import LoraConfig
from onediff.config.training import TrainingConfig
from onediff.data.rows import collate
from onediff.errors import UserError
from onediff.model import fp8
from onediff.model.fp8 import E4M3, E5M2, Fp8Linear, check_fp8, linear, multiply_in_fp8, quantised
from onediff.model.lora import add_adapters
from onediff.training.activations import checkpoint_layers
from onediff.training.export import export_run

PARTS = ("delta", "language")
MANTISSA = {E4M3: 3, E5M2: 2}


def heavy(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values over many orders of magnitude, as gradients have, and whole rows of zeros."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).mul(4).exp()
    return (made * (torch.rand(*shape[:-1], 1, generator=generator) > 0.1)).to(dtype)


def error_of(x: Tensor, kind: torch.dtype) -> Tensor:
    """The most by which rounding `[rows, n]` to `kind` may change each value: half a step, never less than the smallest."""
    info, x = torch.finfo(kind), x.double()
    steps = x.abs().amax(-1, keepdim=True) / fp8.TOP[kind] * info.smallest_normal
    return torch.maximum(x.abs(), steps) * 2.0 ** -(MANTISSA[kind] + 1)


def bound(a: Tensor, b: Tensor, kind: torch.dtype) -> Tensor:
    """The most by which `a · bᵀ` may be off with `a` rounded to `kind` and `b` to e4m3."""
    off_a, off_b = error_of(a, kind), error_of(b, E4M3)
    a, b = a.double().abs(), b.double().abs()
    return a @ off_b.T + off_a @ b.T + off_a @ off_b.T


@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 999), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=30, deadline=None)
def test_values_are_off_by_half_a_step_of_their_type_and_scaled_exactly(count, width, seed, dtype):
    x = heavy(count, width, seed=seed, dtype=dtype)
    for kind in (E4M3, E5M2):
        small, scale = quantised(x, kind)
        assert small.shape == (count, -(-width // 16) * 16) and scale.shape == (count, 1)
        assert (small[:, width:].float() == 0).all()
        assert (torch.frexp(scale).mantissa == 0.5).all(), "powers of two"
        assert ((small.double() * scale)[:, :width] - x.double()).abs().le(error_of(x, kind)).all()


@given(
    st.sampled_from([(1,), (16,), (5, 7), (2, 3, 11)]),
    st.sampled_from([16, 48, 64]),
    st.sampled_from([16, 80]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 999),
)
@settings(max_examples=30, deadline=None)
def test_result_and_gradients_are_within_what_fp8_implies(tokens, width, out, biased, dtype, seed):
    x, weight, g = (
        heavy(*shape, seed=seed + i, dtype=dtype)
        for i, shape in enumerate([(*tokens, width), (out, width), (*tokens, out)])
    )
    bias = heavy(1, out, seed=seed + 3, dtype=dtype)[0] if biased else None
    inputs = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    found = linear(x, weight, bias)
    found_gradients = torch.autograd.grad(found, inputs, g)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    wanted = nn.functional.linear(*exact)
    wanted_gradients = torch.autograd.grad(wanted, exact, g.double())
    assert found.dtype == dtype and found.shape == (*tokens, out)
    x, g = x.detach().flatten(0, -2), g.flatten(0, -2)
    limits = [bound(x, weight, E4M3), bound(g, weight.T, E5M2), bound(g.T, x.T, E5M2)]
    if biased:
        limits.append(torch.zeros(1, dtype=torch.float64))
    for mine, theirs, limit in zip((found, *found_gradients), (wanted, *wanted_gradients), (limits), strict=True):
        # Beyond fp8: sums are in fp32 and the result is rounded to its type.
        off, theirs = (t.double().reshape(limit.shape if limit.numel() > 1 else -1) for t in (mine - theirs, theirs))
        beyond = theirs.abs() * torch.finfo(dtype).eps + 1e-5 * theirs.abs().max()
        assert off.abs().le(limit + beyond).all()


def test_usual_values_lose_as_much_as_three_and_two_bits_of_mantissa_do():
    """0.037 and 0.06 for products of normal values; other scales or fewer bits would show."""
    torch.manual_seed(0)
    x, weight, g = torch.randn(37, 64, requires_grad=True), torch.randn(32, 64, requires_grad=True), torch.randn(37, 32)
    y = linear(x, weight)
    found = [y, *torch.autograd.grad(y, (x, weight), g)]
    wanted = [x @ weight.T, g @ weight, g.T @ x]
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
    assert errors == pytest.approx([0.038, 0.060, 0.060], rel=0.1)


def test_a_token_depends_on_no_other_bit_by_bit():
    x, weight, g = heavy(40, 64), heavy(32, 64, seed=1), heavy(40, 32, seed=2)
    x.requires_grad_()
    together = linear(x, weight)
    (gradient,) = torch.autograd.grad(together, x, g)
    for few in (slice(0, 3), slice(17, 40)):
        alone = linear(x[few], weight)
        assert torch.equal(alone, together[few])
        assert torch.equal(torch.autograd.grad(alone, x, g[few])[0][few], gradient[few])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(bad):
    x = torch.ones(2, 16)
    x[1, 3] = bad
    found = linear(x, torch.ones(16, 16))
    assert torch.equal(found[0], torch.full((16,), 16.0))
    assert not found[1].isfinite().any()


def model_in_fp8(*parts: str) -> nn.Module:
    model = tiny_model()
    multiply_in_fp8(model, parts)
    return model


def test_only_layers_that_fit_change_and_their_parameters_keep_their_names(caplog):
    plain, model = tiny_model(), tiny_model()
    with caplog.at_level("INFO"):
        assert multiply_in_fp8(model, PARTS) == "18 layers of delta, 14 layers of language"
    (told,) = caplog.messages
    assert "*.expand (16 to 24)" in told and "*.cross_attention.key (24 to 16)" in told
    changed = {name for name, module in model.named_modules() if isinstance(module, Fp8Linear)}
    assert all(name.startswith(("delta.layers.", "language.model.layers.")) for name in changed)
    assert list(model.state_dict()) == list(plain.state_dict())
    made = batch("pair", "single")
    assert torch.equal(model(made), plain(made)), "what is evaluated is what an exported model computes"
    assert not torch.equal(model.train()(made), plain(made))


def test_adapters_stay_as_they_are():
    model = tiny_model()
    add_adapters(model.language, LoraConfig(rank=16))
    multiply_in_fp8(model, ["language"])
    kinds = {name.rpartition("layers.")[2]: type(module) for name, module in model.language.named_modules()}
    assert kinds["0.mlp.up_proj.base_layer"] is Fp8Linear
    assert kinds["0.mlp.up_proj.lora_A.default"] is kinds["0.mlp.up_proj.lora_B.default"] is nn.Linear


def test_a_part_without_a_layer_that_fits_is_refused():
    with pytest.raises(UserError, match=r"training\.fp8: vision has no linear layer whose widths are multiples of 16"):
        model_in_fp8("vision")


def test_a_gpu_without_fp8_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    with pytest.raises(UserError, match=r"training\.fp8: NVIDIA A100-SXM4-80GB has no fp8 units .*8\.0.*8\.9"):
        check_fp8()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    check_fp8()


def test_it_needs_bf16():
    assert TrainingConfig(fp8=["language"]).fp8 == ("language",)
    with pytest.raises(ValueError, match="fp8 needs `precision: bf16`"):
        TrainingConfig(fp8=["language"], precision="fp32")


def gradients(model: nn.Module, micro_batches: list[list[int]]) -> dict[str, Tensor]:
    made = rows("pair", "single", "pair", "text")
    for numbers in micro_batches:
        model(collate([made[number] for number in numbers])).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_do_not_depend_on_the_micro_batches():
    """Scales along tokens are powers of two: other tokens beside them change sums in fp32 only."""
    one, other = (gradients(model_in_fp8(*PARTS).train(), cut) for cut in ([[0, 1], [2, 3]], [[0], [1], [2, 3]]))
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointed_layers_compute_the_same_bits(mode):
    def computed(mode: str) -> tuple[dict[str, Tensor], int]:
        model = model_in_fp8(*PARTS).train()
        checkpoint_layers(model.language, mode)
        with Counted() as counts:
            found = gradients(model, [[0, 1]])
        return found, counts.operators["_scaled_mm"]

    (wanted, once), (found, times) = computed("none"), computed(mode)
    assert (times > once) == (mode == "full")
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


def test_nothing_waits_for_the_device_and_frozen_weights_cost_no_product():
    model = model_in_fp8(*PARTS).train()
    with Counted() as counts:
        gradients(model, [[0, 3]])
    assert counts.waits == {}
    all_train = counts.operators["_scaled_mm"]
    model.language.requires_grad_(False)
    with Counted() as counts:
        gradients(model, [[0, 3]])
    assert counts.operators["_scaled_mm"] == all_train - 14


def test_a_model_learns_as_in_bf16():
    """Twelve steps on the same rows; after them fp8 is as far from bf16 as 3 % of what was learnt."""

    def losses(*parts: str) -> list[float]:
        model = model_in_fp8(*parts).to(torch.bfloat16).train()
        masters = [p.detach().float() for p in model.parameters()]
        optimizer, made, found = torch.optim.AdamW(masters, lr=3e-3), batch("pair", "single", "pair", "text"), []
        for _ in range(12):
            loss = model(made).mean()
            loss.backward()
            for parameter, master in zip(model.parameters(), masters, strict=True):
                master.grad, parameter.grad = None if parameter.grad is None else parameter.grad.float(), None
            optimizer.step()
            with torch.no_grad():
                for parameter, master in zip(model.parameters(), masters, strict=True):
                    parameter.copy_(master)
            found.append(float(loss))
        return found

    bf16, in_fp8 = losses(), losses(*PARTS)
    assert bf16[-1] < bf16[0] / 2
    assert in_fp8[-1] == pytest.approx(bf16[-1], abs=0.03 * (bf16[0] - bf16[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What one process found, and two runs."""
    folder = tmp_path_factory.mktemp("fp8")
    render(folder / "data", 20, 20)
    return found_by(1, folder)


def found_by(world: int, folder: Path) -> Path:
    words = [f"{folder}/{world}.json", f"{folder}/data", str(folder)]
    run_ranks(Path(fp8_worker.__file__), words, world, timeout=900)
    return folder


def test_it_is_in_use_by_the_engine_and_close_to_fp32(folder):
    found = json.loads((folder / "1.json").read_text())
    alone, plain = found["fp8"], found["plain"]
    assert alone["said"] == "18 layers of delta, 14 layers of language"
    assert plain["loss"] == pytest.approx(alone["loss"], abs=0.05)
    assert abs(plain["loss"][0] - alone["loss"][0]) > 1e-3


@pytest.mark.long
def test_topologies_give_the_same(folder):
    """ZeRO-3 on two ranks, and layers cut over two, equal one rank to fp32's rounding before weights change; afterwards now
    and then a value lies between two of fp8 and falls to the other one."""
    found_by(2, folder)
    one, two = (json.loads((folder / f"{world}.json").read_text()) for world in (1, 2))
    alone = one["fp8"]
    for name, found in two.items():
        assert found["said"] == alone["said"]
        assert found["loss"][0] == pytest.approx(alone["loss"][0], abs=1e-5), name
        assert found["grad_norm"][0] == pytest.approx(alone["grad_norm"][0], rel=1e-5), name
        assert found["loss"] == pytest.approx(alone["loss"], abs=1e-3), name
        assert found["grad_norm"] == pytest.approx(alone["grad_norm"], rel=5e-3), name


def test_a_resumed_run_repeats_the_same_bits_and_exports_ordinary_weights(folder):
    for name in ("loss", "grad_norm"):
        whole, again = (metrics(folder / run, "two", name) for run in ("run", "again"))
        assert list(again) == [3, 4]
        assert again == {step: whole[step] for step in again}
    opened, *_ = (folder / "run" / "tracking" / "phase-two.jsonl").read_text().splitlines()
    told = "12 layers of vision, 20 layers of delta, 14 layers of language"
    assert json.loads(opened)["open"]["tags"]["kernels.fp8"] == told
    export_run(folder / "run", folder / "model")
    exported = onediff.load(folder / "model").model
    assert not any(isinstance(module, Fp8Linear) for module in exported.modules())
