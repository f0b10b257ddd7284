"""torch's AdamW without the wrapper around its step."""

from __future__ import annotations

from inspect import unwrap

import torch


class AdamW(torch.optim.AdamW):
    """torch's AdamW, without the wrapper of `step` that imports torch's compiler (1.5 s) only to disable it."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
