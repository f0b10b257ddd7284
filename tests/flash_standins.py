"""Modules with the signatures of flash-attn 2.8.4, flash-attn 3 (hopper/) and flash-attn-4 (flash_attn/cute) as their
sources of August 2026 have them; they compute on the CPU, and note what they were called with."""

import sys
import types

import torch

from onediff.model.attention import attention


def computed(q, k, v, cu_q, cu_k, max_q, max_k, dropout, scale, causal, window):
    assert cu_q.dtype == cu_k.dtype == torch.int32 and isinstance(max_q, int) and isinstance(max_k, int)
    assert max_q >= int(cu_q.diff().max()) and max_k >= int(cu_k.diff().max())
    return attention(q, k, v, cu_q, cu_k, max_q, max_k, dropout, scale, causal, window, backend="reference")


def flash_attn_2(calls):
    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
        block_table=None,
    ):
        calls.append("flash_attn_2")
        assert softcap == 0.0 and alibi_slopes is None and not return_attn_probs and block_table is None
        at = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return computed(q, k, v, *at, dropout_p, softmax_scale, causal, window_size)

    return {"flash_attn": flash_attn_varlen_func}


def flash_attn_3(calls):
    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        seqused_q=None,
        seqused_k=None,
        softmax_scale=None,
        causal=False,
        qv=None,
        q_descale=None,
        k_descale=None,
        v_descale=None,
        window_size=(-1, -1),
        attention_chunk=0,
        softcap=0.0,
        num_splits=1,
        pack_gqa=None,
        deterministic=False,
        sm_margin=0,
        return_attn_probs=False,
    ):
        calls.append("flash_attn_3")
        assert seqused_q is None and seqused_k is None and qv is None and not return_attn_probs
        at = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return computed(q, k, v, *at, 0.0, softmax_scale, causal, window_size)

    return {"flash_attn_interface": flash_attn_varlen_func}


def flash_attn_4(calls):
    def flash_attn_varlen_func(
        q,
        k,
        v,
        qv=None,
        cu_seqlens_q=None,
        cu_seqlens_k=None,
        max_seqlen_q=None,
        max_seqlen_k=None,
        min_seqlen_k=None,
        seqused_q=None,
        seqused_k=None,
        gather_kv_indices=None,
        page_table=None,
        softmax_scale=None,
        causal=False,
        window_size=(None, None),
        learnable_sink=None,
        softcap=0.0,
        num_splits=1,
        pack_gqa=None,
        deterministic=False,
        score_mod=None,
        score_mod_bwd=None,
        mask_mod=None,
        block_sparse_tensors=None,
        aux_tensors=None,
        aux_scalars=None,
        return_lse=False,
        scheduler_metadata=None,
        seqlen_k_per_split=None,
        disable_scheduler_metadata=False,
    ):
        calls.append("flash_attn_4")
        assert qv is None and min_seqlen_k is None and seqused_q is None and page_table is None
        assert all(side is None or side >= 0 for side in window_size)
        window = tuple(-1 if side is None else side for side in window_size)
        at = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        # Its autograd function always gives the log-sum-exp too.
        return computed(q, k, v, *at, 0.0, softmax_scale, causal, window), None

    return {"flash_attn.cute": flash_attn_varlen_func}


def torch_varlen(calls):
    def varlen_attn(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        *,
        return_aux=None,
        scale=None,
        window_size=(-1, -1),
        enable_gqa=False,
        seqused_k=None,
        block_table=None,
        num_splits=None,
    ):
        calls.append("torch_varlen")
        assert enable_gqa or query.shape[1] == key.shape[1]
        causal = window_size == (-1, 0)
        return computed(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, 0.0, scale, causal, window_size)

    return {"torch.nn.attention.varlen": varlen_attn}


def install(monkeypatch, calls, *makers, broken=()):
    """Puts stand-ins into `sys.modules`; every other flash module is absent, those in `broken` fail on import."""
    from onediff.model import attention as ours

    names = [kernel.module for kernel in ours.KERNELS.values()]
    made = {name: function for maker in makers for name, function in maker(calls).items()}
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ModuleNotFoundError
    for name, function in made.items():
        module = types.ModuleType(name)
        module.__path__ = []
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, name, module)
        parent = name.partition(".")[0]
        if parent != name and sys.modules.get(parent) is None:
            package = types.ModuleType(parent)
            package.__path__ = []
            monkeypatch.setitem(sys.modules, parent, package)
    for name in broken:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))  # imports, but lacks its function
    ours._function.cache_clear()
    monkeypatch.setattr(ours, "_in_use", None)
