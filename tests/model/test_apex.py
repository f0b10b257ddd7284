"""Apex is recognised by its contents and called with its own arguments; without it, torch's kernels give the same."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from models import batch, tiny_model
from standin_apex import write_apex, write_pyramid_apex
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from onediff.config.training import OptimizerConfig
from onediff.errors import UserError
from onediff.model import norms
from onediff.model.apex import find_apex
from onediff.model.norms import ApexLayerNorm, ApexRMSNorm, FusedRMSNorm, fuse_norms
from onediff.training.optimizer import build_optimizer


@pytest.fixture
def path(monkeypatch):
    """Puts a folder in front of the import path; modules imported from it are removed afterwards."""

    def put(folder: Path) -> None:
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()

    yield put
    for name in [name for name in sys.modules if name.partition(".")[0] in ("apex", "amp_C", "fused_layer_norm_cuda")]:
        del sys.modules[name]


def test_without_apex_the_reason_is_named():
    assert find_apex().missing == "NVIDIA's Apex is not installed"


def test_the_package_of_the_same_name_on_pypi_is_named_and_never_imported(path, tmp_path):
    path(write_pyramid_apex(tmp_path))
    found = find_apex()
    assert not found.norms and not found.optimizer
    assert str(tmp_path / "apex") in found.missing and "Pyramid" in found.missing
    assert "github.com/NVIDIA/apex" in found.missing
    with pytest.raises(UserError, match=r"training\.norms: apex cannot be used: .*Pyramid"):
        fuse_norms(nn.Sequential(), "apex")
    assert "Pyramid" in fuse_norms(nn.Sequential(), "auto")


def test_apex_without_its_compiled_part_is_not_used(path, tmp_path):
    path(write_apex(tmp_path, "amp_C"))
    found = find_apex()
    assert (found.norms, found.optimizer) == (False, True)
    assert "fused_layer_norm_cuda" in found.missing and "amp_C" not in found.missing


def test_apex_norms_are_called_with_their_own_arguments_and_give_the_same(path, tmp_path, monkeypatch):
    path(write_apex(tmp_path, "amp_C", "fused_layer_norm_cuda"))
    model, made = tiny_model(), batch("pair", "single")
    expected = model(made)
    expected.sum().backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    names = set(model.state_dict())
    assert fuse_norms(model, "apex") == "Apex"
    monkeypatch.setattr(norms, "on_gpu", lambda x: True)
    model.zero_grad()
    found = model(made)
    found.sum().backward()
    from apex.normalization.fused_layer_norm import calls

    kinds = {(kind, shape) for kind, shape, _ in calls}
    assert kinds == {("rms", (32,)), ("layer", (24,)), ("layer", (16,))}
    assert {eps for kind, _, eps in calls if kind == "rms"} == {model.language.config.rms_norm_eps}
    assert set(model.state_dict()) == names
    torch.testing.assert_close(found, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, msg=name)


def test_on_the_host_apex_classes_compute_with_torch(path, tmp_path):
    path(write_apex(tmp_path, "amp_C", "fused_layer_norm_cuda"))
    for plain, fused in ((LlamaRMSNorm(8), ApexRMSNorm), (nn.LayerNorm(8), ApexLayerNorm)):
        x = torch.randn(2, 8)
        expected = plain(x)
        fuse_norms(plain, "apex")
        assert type(plain) is fused
        torch.testing.assert_close(plain(x), expected)


def test_torch_norms_equal_those_of_transformers_bit_by_bit_in_fp32():
    norm, x = LlamaRMSNorm(64), torch.randn(3, 5, 64)
    nn.init.normal_(norm.weight)
    expected = norm(x)
    assert fuse_norms(norm, "torch") == "torch"
    assert type(norm) is FusedRMSNorm
    assert torch.equal(norm(x), expected)


def test_a_norm_that_computes_something_else_is_left_alone():
    norm = GemmaRMSNorm(8)
    fuse_norms(norm, "torch")
    assert type(norm) is GemmaRMSNorm
    kept = LlamaRMSNorm(8)
    fuse_norms(kept, "plain")
    assert type(kept) is LlamaRMSNorm


def weights_after(optimizer: str) -> tuple[list, str]:
    """Weights after five steps with the given kernel, and the kernel's name."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(3))]
    groups = [
        {"params": [parameters[0]], "lr": 1e-2, "weight_decay": 0.1},
        {"params": [parameters[1]], "lr": 1e-3, "weight_decay": 0.0},
    ]
    made, name = build_optimizer(groups, OptimizerConfig(kernel=optimizer), offloaded=False)
    for _ in range(5):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        made.step()
    return [parameter.detach() for parameter in parameters], name


def test_every_optimizer_takes_the_same_steps(path, tmp_path):
    plain, name = weights_after("plain")
    assert name == "torch AdamW"
    fused, name = weights_after("auto")
    assert name == "torch AdamW, fused"
    with pytest.raises(UserError, match=r"optimizer\.kernel: apex cannot be used: NVIDIA's Apex is not installed"):
        weights_after("apex")
    path(write_apex(tmp_path, "amp_C", "fused_layer_norm_cuda"))
    apex, name = weights_after("apex")
    assert name == "Apex FusedAdam"
    for other in (fused, apex):
        for mine, theirs in zip(other, plain, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_an_offloaded_optimizer_does_not_use_apex(path, tmp_path):
    path(write_apex(tmp_path, "amp_C"))
    groups = [{"params": [nn.Parameter(torch.ones(2))]}]
    with pytest.raises(UserError, match="offloaded"):
        build_optimizer(groups, OptimizerConfig(kernel="apex"), offloaded=True)
    assert isinstance(build_optimizer(groups, OptimizerConfig(), offloaded=True)[0], torch.optim.AdamW)
