"""Generation with recorded CUDA graphs gives the same tokens as without them."""

from __future__ import annotations

from typing import Any

from gpu_parts.measure import Setting
from gpu_parts.models import SIZES, TINY, build, model_config, pair_rows

from gpu_checks.outcome import NotHere, Wrong
from onediff.data.rows import collate


def check(setting: Setting) -> dict[str, Any]:
    """A language model of 0.1 billion parameters, eight pairs, 32 tokens each."""
    size, pairs, tokens = (TINY[0], 2, 4) if setting.dry else (SIZES[0], 8, 32)
    config = model_config(size, setting.dry)
    model = build(config, setting.device, setting.dtype).eval()
    batch = collate(pair_rows(config, pairs, "one", prompt_only=True), pad_left=True).to(setting.device)
    plain = model.generate(batch, max_new_tokens=tokens)
    if setting.device.type != "cuda":
        raise NotHere("a CPU has no CUDA graphs; captions were generated without", tokens=plain.numel())
    recorded = model.generate(batch, max_new_tokens=tokens, cuda_graph=True)
    if not model.cuda_graphs.used:
        raise Wrong("nothing was recorded")
    same = float((plain == recorded).float().mean())
    seconds = {
        name: min(setting.seconds(lambda on=on: model.generate(batch, max_new_tokens=tokens, cuda_graph=on), 3.0, 1, 3))
        for name, on in (("plain", False), ("graphs", True))
    }
    found = {"same_tokens": same, "seconds": seconds, "times_as_fast": seconds["plain"] / seconds["graphs"]}
    if same < 1:
        raise Wrong(f"{100 * (1 - same):.1f} % of the tokens differ", **found)
    return found
