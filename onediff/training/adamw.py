"""torch's AdamW without the wrapper around its step."""

from __future__ import annotations

from inspect import unwrap

import torch


class AdamW(torch.optim.AdamW):
    """torch's own. Its step is taken out of the wrapper that imports torch's compiler, 1.5 s, to tell it to stay away."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
