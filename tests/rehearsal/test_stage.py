"""Tensors without memory: the fast path of a rehearsal gives the same as torch's own fake tensors."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from onediff.rehearsal.stage import Shapes, is_plain


class Results(TorchDispatchMode):
    """Records each operator with the layout and the storage of its result."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            layout = made.shape, made.stride(), made.storage_offset(), made.dtype, made.device
            shares = [
                made.untyped_storage()._cdata == one.untyped_storage()._cdata for one in args if torch.is_tensor(one)
            ]
            self.made.append((function, *layout, made.untyped_storage().nbytes(), shares))
        return made


def test_plain_operators_give_the_same_as_torchs_own_fake_tensors():
    def results(mode: type[FakeTensorMode]) -> list[tuple]:
        with mode(), Results() as found:
            rows = torch.empty(2, 8, 16, dtype=torch.bfloat16)
            weight = torch.empty(48, 16, dtype=torch.bfloat16, requires_grad=True)
            q, k, v = torch.nn.functional.linear(rows, weight).view(2, 8, 4, 12).transpose(1, 2).split(4, dim=-1)
            mixed = torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v
            flat = mixed.transpose(1, 2).reshape(16, 16)[3:, ::2].float().mul_(2)
            loss = torch.nn.functional.cross_entropy(
                flat * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True)), flat.argmax(-1)
            )
            loss.backward()
            weight.grad.narrow(0, 5, 7).add_(1).detach().copy_(weight.detach()[:7])
        return found.made

    short, whole = results(Shapes), results(FakeTensorMode)
    assert short == whole and sum(is_plain(function) for function, *_ in whole) > 20


def test_constants_and_other_devices_are_left_to_torch():
    with Shapes():
        assert (torch.tensor(3).view(1) * 2).item() == 6, "a value that is known stays known"
        assert (torch.empty(2, device="meta") * 2).device.type == "meta"
