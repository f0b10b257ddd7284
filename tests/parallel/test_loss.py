"""The loss in chunks of targets equals the loss at once, with one call of the head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from onediff.parallel.loss import LossHead, target_loss, with_loss

TARGETS, WIDTH, VOCABULARY = 50, 8, 301


class Largest(TorchDispatchMode):
    """Records the largest first dimension of all results as wide as the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if torch.is_tensor(result) and result.ndim == 2 and result.shape[1] == VOCABULARY:
            self.rows = max(self.rows, len(result))
        return result


def case(bias: bool):
    torch.manual_seed(0)
    head = with_loss(nn.Linear(WIDTH, VOCABULARY, bias=bias))
    hidden = torch.randn(TARGETS, WIDTH, requires_grad=True)
    return head, hidden, torch.randint(0, VOCABULARY, (TARGETS,))


@pytest.mark.parametrize("chunk", [None, 1, 7, 49, 50, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_equal_the_whole_and_call_the_head_once(chunk, bias):
    head, hidden, targets = case(bias)
    weights = torch.rand(TARGETS)
    expected = F.cross_entropy(F.linear(hidden, head.weight, head.bias), targets, reduction="none")
    inputs = [hidden, *head.parameters()]
    gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    calls = []
    head.register_forward_hook(lambda *_: calls.append(1))
    found = target_loss(head, hidden, targets, chunk)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(torch.autograd.grad((found * weights).sum(), inputs), gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert len(calls) == 1


def test_logits_exist_for_one_chunk_at_a_time():
    head, hidden, targets = case(False)
    with Largest() as whole:
        target_loss(head, hidden, targets).sum().backward()
    with Largest() as chunked:
        target_loss(head, hidden, targets, 16).sum().backward()
    assert (whole.rows, chunked.rows) == (TARGETS, 16)


def test_a_head_of_another_kind_is_left_alone():
    class Other(nn.Linear):
        pass

    assert type(with_loss(Other(2, 3))) is Other
    assert type(with_loss(nn.Linear(2, 3))) is LossHead
    torch.testing.assert_close(with_loss(nn.Linear(2, 3))(torch.ones(1, 2)).shape, torch.Size([1, 3]))
