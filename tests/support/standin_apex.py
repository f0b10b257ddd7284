"""A stand-in for NVIDIA's Apex on a machine without a GPU: its files, names and signatures, computed by torch.

Signatures follow apex/normalization/fused_layer_norm.py and apex/optimizers/fused_adam.py of github.com/NVIDIA/apex.
"""

from __future__ import annotations

from pathlib import Path

NORMS = """
import torch
import torch.nn.functional as F

calls = []

def fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
    calls.append(("layer", tuple(normalized_shape), eps))
    return F.layer_norm(input, normalized_shape, weight, bias, eps)

def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
    calls.append(("rms", tuple(normalized_shape), eps))
    return F.rms_norm(input, normalized_shape, weight, eps)
"""

ADAM = """
import torch

class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, bias_correction=True,
                 betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True,
                 weight_decay=0., amsgrad=False, set_grad_none=True,
                 capturable=False, use_master=False):
        defaults = dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults)
        assert adam_w_mode and not (amsgrad or capturable or use_master)

    @torch.no_grad()
    def step(self, closure=None, grads=None, output_params=None, scale=None, grad_norms=None, grad_scaler=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            first, second = group["betas"]
            corrections = [1 - beta ** group["step"] for beta in (first, second)]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(p.data).float()
                    state["exp_avg_sq"] = torch.zeros_like(p.data).float()
                state["exp_avg"].lerp_(p.grad, 1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                root = (state["exp_avg_sq"] / corrections[1]).sqrt() + group["eps"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.addcdiv_(state["exp_avg"] / corrections[0], root, value=-group["lr"])
"""


def write_apex(folder: Path, *extensions: str) -> Path:
    """Writes the stand-in below `folder`, with the named compiled extensions as empty modules."""
    for name, file, text in (("normalization", "fused_layer_norm", NORMS), ("optimizers", "fused_adam", ADAM)):
        part = folder / "apex" / name
        part.mkdir(parents=True)
        (part / f"{file}.py").write_text(text)
        (part / "__init__.py").write_text(f"from apex.{name}.{file} import *\n")
    (folder / "apex" / "__init__.py").write_text("")
    for extension in extensions:
        (folder / f"{extension}.py").write_text("")
    return folder


def write_pyramid_apex(folder: Path) -> Path:
    """Writes what PyPI's package of the same name looks like: a toolkit for Pyramid."""
    (folder / "apex").mkdir(parents=True)
    (folder / "apex" / "__init__.py").write_text("raise ImportError('needs pyramid')\n")
    (folder / "apex" / "views.py").write_text("")
    return folder
