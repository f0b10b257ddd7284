"""Greedy decoding with a preallocated key/value cache.

Uses the language model's own modules, whole or split over a tensor group; only the code between them is reimplemented, for
the model types in `FAMILIES`. Other models, beam search and sampling use Hugging Face `generate`.

Shape letters: B rows, T tokens of the prompt, L capacity in tokens, W width, H query heads, K key/value heads, G = H / K,
D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onediff.model.cuda_graph import Step
from onediff.zero.parameters import is_sharded

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose blocks are norm, attention, norm, gated feed-forward."""
KNOWN = frozenset({"eos_token_id", "pad_token_id", "do_sample", "num_beams", "synced"})
"""Supported options."""


def not_greedy(language: Any, length: int, options: dict[str, Any]) -> str | None:
    """Why `greedy` would not return the same as Hugging Face `generate`, or None if it would.

    `length` is the length of the sequences in tokens, including the prompt.
    """
    config = language.config
    window = getattr(config, "sliding_window", None)
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if options.get("num_beams", 1) != 1:
        return "num_beams requests beam search"
    if options.get("do_sample"):
        return "do_sample requests sampling"
    if others := options.keys() - KNOWN:
        return f"only Hugging Face generate supports {', '.join(sorted(others))}"
    if config.model_type not in FAMILIES:
        return f"the language model is of type {config.model_type}, not {', '.join(FAMILIES)}"
    if rope not in ("default", "linear", "llama3"):
        return f"the language model has positions of type {rope}"
    if window is not None and length > window:
        return f"{length} tokens exceed the language model's sliding window of {window}"
    return None


class Decoder:
    """Decodes one batch: reads the prompt once, then each `step` adds a token to every row.

    All steps run the same operators on the same memory without synchronising, because the position (`place`) is on the
    device too. So a GPU can record a step as a CUDA graph and replay it.

    Each token costs one pass over the weights and the key/value cache; nothing is copied or reallocated.
    """

    def __init__(
        self, language: Any, prompt_BTW: Tensor, seen_BT: Tensor, new: int, ends: Sequence[int], pad: int
    ) -> None:
        """Reads the prompt and writes the first of at most `new` tokens.

        `seen_BT` is False for padding, which is on the left. Any token in `ends` ends a row; finished rows continue with
        `pad`.
        """
        rows, prompt, _ = prompt_BTW.shape
        device, dtype, room = prompt_BTW.device, prompt_BTW.dtype, prompt + new
        base = language.base_model
        self.head, self.words = language.get_output_embeddings(), language.get_input_embeddings()
        self.layers, self.norm = base.layers, base.norm
        self.prompt, self.pad = prompt, pad
        self.ends = torch.tensor(ends, device=device) if ends else None
        padding_B = (~seen_BT).sum(1)
        self.padded = bool(padding_B.any())
        places_L = torch.arange(room, device=device)
        places_BL = (places_L - padding_B[:, None]).clamp(min=0) if self.padded else places_L[None]
        # The model computes the tables, because some kinds of rotary embeddings include a scale.
        table = torch.empty(0, dtype=dtype, device=device)
        self.cos, self.sin = (t[:, None] for t in base.rotary_emb(table, position_ids=places_BL))  # [B or 1, 1, L, D]
        seen_BL = F.pad(seen_BT if self.padded else seen_BT[:1], (0, new), value=False)
        # Added to scores, [B or 1, 1, 1, L]. Finite, so that padding, which sees no keys, does not become NaN.
        self.mask = torch.zeros(seen_BL.shape, dtype=dtype, device=device)
        self.mask = self.mask.masked_fill_(~seen_BL, torch.finfo(dtype).min)[:, None, None]
        self.slabs: list[tuple[Tensor, Tensor]] = []
        """Keys and values of each layer, `[B, K, L, D]`, filled from the left."""
        self.going_B = torch.ones(rows, dtype=torch.bool, device=device)
        self.made_BL = torch.full((rows, room), pad, device=device)
        """All tokens written so far, without the prompt."""
        self.place = torch.full((1,), prompt, device=device)
        """The position of the newest token."""
        self._write(self._last_logits(prompt_BTW, self._prompt_attention))

    def step(self) -> None:
        """Reads the newest token of every row and writes the next."""
        # The cache has room for the longest answer; positions that are not written yet are masked.
        self.mask.index_fill_(-1, self.place, 0)
        x_B1W = self.words(self.made_BL.index_select(1, self.place))
        turn = self.cos.index_select(2, self.place), self.sin.index_select(2, self.place)
        logits = self._last_logits(x_B1W, partial(self._token_attention, turn=turn))
        self.place.add_(1)
        self._write(logits)

    def keep(self, rows: Tensor) -> None:
        """Keeps only these rows."""
        self.slabs = [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self.slabs]
        self.going_B, self.made_BL = self.going_B[rows], self.made_BL[rows]
        if self.padded:
            self.mask, self.cos, self.sin = self.mask[rows], self.cos[rows], self.sin[rows]

    def _write(self, logits: Tensor) -> None:
        token_B = torch.where(self.going_B, logits.argmax(-1), self.pad)
        self.made_BL.index_copy_(1, self.place, token_B[:, None])
        if self.ends is not None:
            self.going_B.logical_and_((token_B[:, None] != self.ends).all(1))

    def _last_logits(self, x_BTW: Tensor, attended: Callable[[Any, Tensor, int], Tensor]) -> Tensor:
        """`[B, vocabulary]`: the logits of the next token."""
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            mixed_BTW = attended(layer.self_attn, _normed(layer.input_layernorm, x_BTW), number)
            # Only the newest position of the last layer is needed.
            x_BTW = (x_BTW[:, -1:] if number == last else x_BTW) + mixed_BTW
            h_BTW, mlp = _normed(layer.post_attention_layernorm, x_BTW), layer.mlp
            x_BTW = x_BTW + mlp.down_proj(mlp.act_fn(mlp.gate_proj(h_BTW)) * mlp.up_proj(h_BTW))
        return self.head(_normed(self.norm, x_BTW))[:, 0]

    def _prompt_attention(self, attention: Any, h_BTW: Tensor, number: int) -> Tensor:
        """Causal attention over the prompt; in the last layer, only for the newest position."""
        size, T = attention.head_dim, self.prompt
        asked = slice(-1 if number + 1 == len(self.layers) else 0, None)
        cos, sin = self.cos[:, :, :T], self.sin[:, :, :T]
        k, v = _heads(attention, "k", h_BTW), _heads(attention, "v", h_BTW)
        q = _turned(_heads(attention, "q", h_BTW[:, asked]), cos[:, :, asked], sin[:, :, asked])
        shape = (*k.shape[:2], self.mask.shape[-1], size)
        keys, values = k.new_zeros(shape), v.new_zeros(shape)
        keys[:, :, :T], values[:, :, :T] = _turned(k, cos, sin), v
        self.slabs.append((keys, values))
        mask = None
        if self.padded:
            causal = torch.full((T, T), torch.finfo(h_BTW.dtype).min, dtype=h_BTW.dtype, device=h_BTW.device).triu(1)
            mask = torch.minimum(self.mask[..., :T], causal[asked])
        mixed = F.scaled_dot_product_attention(
            q,
            keys[:, :, :T],
            values[:, :, :T],
            attn_mask=mask,
            is_causal=mask is None and q.shape[2] == T,
            scale=attention.scaling,
            enable_gqa=True,
        )
        return attention.o_proj(mixed.transpose(1, 2).flatten(2))

    def _token_attention(self, attention: Any, h_B1W: Tensor, number: int, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Attention of the newest position to all positions so far."""
        keys, values = self.slabs[number]
        keys.index_copy_(2, self.place, _turned(_heads(attention, "k", h_B1W), *turn))
        values.index_copy_(2, self.place, _heads(attention, "v", h_B1W))
        q = _turned(_heads(attention, "q", h_B1W), *turn)
        # The G heads that share keys become queries of one attention, so that keys are not repeated.
        q_BKGD = q.squeeze(2).unflatten(1, (keys.shape[1], -1))
        mixed = F.scaled_dot_product_attention(q_BKGD, keys, values, attn_mask=self.mask, scale=attention.scaling)
        return attention.o_proj(mixed.flatten(1)[:, None])


def greedy(
    language: Any,
    embeds_BTW: Tensor,
    seen_BT: Tensor,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    synced: Callable[[bool], bool] | None = None,
    record: Callable[[Step], Step] | None = None,
    **greedily: Any,
) -> Tensor:
    """Continues left-padded prompts; returns token ids `[B, at most max_new_tokens]`, padded after each row's end.

    Finished rows are dropped once half of the rows have finished. `synced(going)` returns whether any rank continues,
    because ranks that share weights (ZeRO-3) must all run each step. `record` turns a step into an equivalent, cheaper one,
    as `onediff.model.cuda_graph.recorded` does, and is called again whenever rows are dropped. `greedily` are options that
    `not_greedy` has checked: no beams, no sampling.
    """
    rows, prompt, _ = embeds_BTW.shape
    device = embeds_BTW.device
    ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or ())
    decoder = Decoder(language, embeds_BTW, seen_BT, max_new_tokens, ends, pad_token_id)
    answers = torch.full((rows, max_new_tokens), pad_token_id, device=device)
    here = torch.arange(rows, device=device)  # which rows are still computed
    # Checking whether all rows have ended synchronises with the GPU.
    ask_every = 1 if device.type == "cpu" else 8
    step, taken = decoder.step, 1
    while True:
        if ends and taken % ask_every == 0:
            left = int(decoder.going_B.sum())
            if not (synced(left > 0) if synced else left):
                break
            if synced is None and left <= len(here) // 2:
                answers[here] = decoder.made_BL[:, prompt:]
                kept = decoder.going_B.nonzero().flatten()
                decoder.keep(kept)
                here, step = here[kept], decoder.step
        if taken == max_new_tokens:
            break
        step()
        taken += 1
        if record is not None and step == decoder.step:
            # Not before the first step of a shape, which loads kernels and cannot be recorded.
            step = record(step)
    answers[here] = decoder.made_BL[:, prompt:]
    return answers[:, :taken]


def _heads(attention: Any, name: str, h_BTW: Tensor) -> Tensor:
    """The queries, keys or values of these positions, `[B, heads, T, D]`."""
    heads = getattr(attention, f"{name}_proj")(h_BTW).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    return (heads if norm is None else _normed(norm, heads)).transpose(1, 2)


def _normed(norm: Any, x: Tensor) -> Tensor:
    """RMS norm by one kernel in fp32. The model's own module is used in half precision, to round as it does, and under
    ZeRO-3, to gather its weight."""
    if x.dtype != torch.float32 or is_sharded(norm.weight):
        return norm(x)
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies rotary embeddings `[B or 1, 1, T, D]` to `[B, heads, T, D]`."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
