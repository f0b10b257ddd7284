"""The random number generators of a process, as tensors for a checkpoint."""

from __future__ import annotations

import random

import numpy as np
import torch

_PREFIX = "rng/"


def random_states() -> dict[str, torch.Tensor]:
    """The states of torch's, numpy's and Python's generators, and of this process's GPU, by key."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        # Both generators hold back the second of a pair of normal numbers until it is used.
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*map(int, keys), position], dtype=torch.int64),
        "numpy_gauss": torch.tensor([has_gauss, cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {_PREFIX + key: value for key, value in states.items()}


def restore_random_states(states: dict[str, torch.Tensor]) -> None:
    """Restores the result of `random_states`."""
    torch.set_rng_state(states[_PREFIX + "torch"])
    gauss = states[_PREFIX + "python_gauss"].tolist()
    random.setstate((3, tuple(states[_PREFIX + "python"].tolist()), gauss[0] if gauss else None))
    *keys, position = states[_PREFIX + "numpy"].tolist()
    has_gauss, cached = states[_PREFIX + "numpy_gauss"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, int(has_gauss), cached))
    if torch.cuda.is_available() and _PREFIX + "cuda" in states:
        torch.cuda.set_rng_state(states[_PREFIX + "cuda"])
