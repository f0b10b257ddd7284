"""Modules with the signatures of flash-attn 2.8.4, flash-attn 3 (hopper/) and flash-attn-4 (flash_attn/cute) as their
sources of August 2026 have them; they compute on the CPU, and note what they were called with."""

import inspect
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from onediff.model.attention import attention


def computed(q, k, v, cu_q, cu_k, max_q, max_k, dropout, scale, causal, window):
    assert cu_q.dtype == cu_k.dtype == torch.int32 and isinstance(max_q, int) and isinstance(max_k, int)
    assert max_q >= int(cu_q.diff().max()) and max_k >= int(cu_k.diff().max())
    return attention(q, k, v, cu_q, cu_k, max_q, max_k, dropout, scale, causal, window, backend="reference")


def note(calls, name):
    """Notes a call by a model, not by a kernel's test, which runs in its own thread."""
    if threading.current_thread() is threading.main_thread():
        calls.append(name)


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
        note(calls, "flash_attn_2")
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
        note(calls, "flash_attn_3")
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
        note(calls, "flash_attn_4")
        assert qv is None and min_seqlen_k is None and seqused_q is None and page_table is None
        assert all(side is None or side >= 0 for side in window_size)
        window = tuple(-1 if side is None else side for side in window_size)
        at = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        # Its autograd function always gives the log-sum-exp too.
        return computed(q, k, v, *at, 0.0, softmax_scale, causal, window), None

    return {"flash_attn.cute": flash_attn_varlen_func}


def flash_attn_cute_of_2(calls):
    """The module that flash-attn 2.8.3's source package contains under the name of flash-attn-4."""

    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=None,
        cu_seqlens_k=None,
        seqused_q=None,
        seqused_k=None,
        page_table=None,
        softmax_scale=None,
        causal=False,
        window_size=(None, None),
        learnable_sink=None,
        softcap=0.0,
        pack_gqa=None,
    ):
        raise AssertionError("not to be called")

    return {"flash_attn.cute": flash_attn_varlen_func}


def flash_attn_4_without_backward(calls):
    """A version without a backward pass, like several early ones with packed sequences."""

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, mixed):
            return mixed.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise NotImplementedError("backward pass of packed sequences")

    ((module, whole),) = flash_attn_4(calls).items()

    def flash_attn_varlen_func(q, k, v, *args, **kwargs):
        mixed, more = whole(q, k, v, *args, **kwargs)
        return Forward.apply(mixed), more

    flash_attn_varlen_func.__signature__ = inspect.signature(whole)
    return {module: flash_attn_varlen_func}


def flash_attn_3_of_another_build(calls):
    """A version that computes something else."""
    ((module, whole),) = flash_attn_3(calls).items()

    def flash_attn_varlen_func(*args, **kwargs):
        return 2 * whole(*args, **kwargs)

    flash_attn_varlen_func.__signature__ = inspect.signature(whole)
    return {module: flash_attn_varlen_func}


def flash_attn_3_by_its_operator(calls):
    """Attends as the library does: an autograd function around the operator that it registers."""

    @torch.library.custom_op("flash_attn_3::_flash_attn_forward", mutates_args=())
    def forward(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float, causal: bool
    ) -> Tensor:
        note(calls, "flash_attn_3")
        return computed(q, k, v, cu_q, cu_k, max_q, max_k, 0.0, scale, causal, (-1, -1))

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, *at):
            mixed = forward(q, k, v, *at)
            ctx.save_for_backward(q, k, v, mixed)  # the kernel's backward pass reads it
            ctx.at = at
            return mixed

        @staticmethod
        def backward(ctx, gradient):
            q, k, v, _ = ctx.saved_tensors
            return *gradients_of(gradient, q, k, v, ctx.at), *(None for _ in ctx.at)

    ((module, whole),) = flash_attn_3(calls).items()

    def flash_attn_varlen_func(q, k, v, *at, softmax_scale, causal, window_size):
        assert window_size == (-1, -1)
        return Function.apply(q, k, v, *at, softmax_scale, causal)

    flash_attn_varlen_func.__signature__ = inspect.signature(whole)
    return {module: flash_attn_varlen_func}


def gradients_of(gradient, q, k, v, at):
    *places, scale, causal = at

    def computed_again():
        drawn = [t.detach().requires_grad_() for t in (q, k, v)]
        mixed = computed(*drawn, *places, 0.0, scale, causal, (-1, -1))
        return torch.autograd.grad(mixed, drawn, gradient)

    # In a thread of its own: inside an operator there is no autograd.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(computed_again).result()


def torch_varlen_itself(calls):
    """Torch's own function and operators, with kernels for the CPU beneath."""
    from torch.nn.attention import varlen

    def forward(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False, scale=None, window_size=None, *more):
        note(calls, "torch_varlen")
        mixed = computed(q, k, v, cu_q, cu_k, max_q, max_k, 0.0, scale, is_causal, (-1, -1))
        return mixed, q.new_zeros(1), q.new_zeros(1)

    def backward(gradient, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, is_causal, rng, scale=None, window_size=None):
        return gradients_of(gradient, q, k, v, (cu_q, cu_k, max_q, max_k, scale, is_causal))

    varlen._varlen_attn.register_kernel("cpu")(forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(backward)
    return {"torch.nn.attention.varlen": varlen.varlen_attn}


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
        note(calls, "torch_varlen")
        assert enable_gqa or query.shape[1] == key.shape[1]
        causal = window_size == (-1, 0)
        return computed(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, 0.0, scale, causal, window_size)

    return {"torch.nn.attention.varlen": varlen_attn}


def install(monkeypatch, calls, *makers, broken=()):
    """Puts stand-ins into `sys.modules`; every other flash module is absent, those in `broken` fail on import."""
    from onediff.model import attention as ours
    from onediff.model import kernels

    names = [kernel.module for kernel in kernels.KERNELS.values()]
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
    monkeypatch.setattr(kernels, "ACCELERATOR", "cpu")
    forget()
    monkeypatch.setattr(ours, "_in_use", None)
    monkeypatch.setattr(ours, "_asked_for", None)


def forget():
    """Clears everything cached about kernels."""
    from onediff.model import attention as ours
    from onediff.model import kernels

    kernels.function.cache_clear()
    ours._working.cache_clear()
