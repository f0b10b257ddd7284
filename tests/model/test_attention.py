"""The attention function: every backend against the reference in fp64, and the choice of backend."""

import logging
from functools import partial

import flash_standins as standins
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onediff.errors import UserError
from onediff.model import kernels
from onediff.model.attention import attention, in_use, use
from onediff.model.kernels import KERNELS, missing

LENGTH = st.one_of(st.integers(0, 40), st.integers(0, 700))
SHAPES = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.tuples(LENGTH, LENGTH), min_size=1, max_size=4),
        "same": st.booleans(),  # as many keys as queries
        "even": st.booleans(),
        "heads": st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
        "size": st.sampled_from([32, 36, 64, 80, 128]),
        "causal": st.booleans(),
        "window": st.sampled_from([(-1, -1), (-1, -1), (17, 17), (5, -1)]),
        "scale": st.sampled_from([None, 0.3]),
        "seed": st.integers(0, 2**31),
    }
)


def cu_seqlens(lengths):
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


def case(shape, dtype):
    """Queries, keys, values, an output gradient, and the other arguments."""
    pairs = [(q, q if shape["same"] else k) for q, k in shape["lengths"]]
    pairs = pairs[:1] * len(pairs) if shape["even"] else pairs
    queries, keys = zip(*pairs, strict=True)
    generator = torch.Generator().manual_seed(shape["seed"])
    heads, groups = shape["heads"]
    drawn = [
        torch.randn(total, count, shape["size"], generator=generator).to(dtype)
        for total, count in ((sum(queries), heads), (sum(keys), groups), (sum(keys), groups), (sum(queries), heads))
    ]
    at = (cu_seqlens(queries), cu_seqlens(keys), max(queries), max(keys))
    return drawn, at, {"softmax_scale": shape["scale"], "causal": shape["causal"], "window_size": shape["window"]}


def with_gradients(drawn, at, options, backend):
    q, k, v = (t.clone().requires_grad_() for t in drawn[:3])
    made = attention(q, k, v, *at, **options, backend=backend)
    made.backward(drawn[3])
    # Keys that no query sees may get no gradient at all.
    return made.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad for t in (q, k, v))


def assert_close(made, expected, tolerance):
    # Where a query sees one key, dq and dk are 0 but for rounding, which is measured by the largest gradient.
    largest = max(float(tensor.norm()) for tensor in expected)
    for name, a, b in zip(("output", "dq", "dk", "dv"), made, expected, strict=True):
        assert a.shape == b.shape
        error, size = float((a.double() - b).norm()), float(b.norm())
        if name in ("dq", "dk"):
            size = max(size, 0.1 * largest)
        assert error <= tolerance * size + 1e-12, f"{name}: relative error {error / max(size, 1e-30):.1e}"


def agrees_with_fp64(backend, shape):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        drawn, at, options = case(shape, dtype)
        expected = with_gradients([t.double() for t in drawn], at, options, "reference")
        assert_close(with_gradients(drawn, at, options, backend), expected, tolerance)


EDGES = {
    "lengths": [(0, 5), (700, 0), (3, 700), (1, 1)],
    "same": False,
    "even": False,
    "heads": (4, 2),
    "size": 32,
    "causal": True,
    "window": (-1, -1),
    "scale": None,
    "seed": 0,
}


ONE_SHAPE = {
    "lengths": [(9, 9), (5, 5)],
    "same": True,
    "even": False,
    "heads": (2, 1),
    "size": 32,
    "causal": True,
    "window": (-1, -1),
    "scale": None,
    "seed": 0,
}


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@settings(max_examples=8, deadline=None)
@given(shape=SHAPES)
@example(shape=EDGES)
def test_backend_agrees_with_fp64(backend, shape):
    agrees_with_fp64(backend, shape)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@settings(max_examples=200, deadline=None)
@given(shape=SHAPES)
def test_backend_agrees_with_fp64_on_many_shapes(backend, shape):
    agrees_with_fp64(backend, shape)


def test_reference_is_what_flash_attn_documents():
    # flash_attn_varlen_func's docstring: two queries of five keys see 4 and 5 of them, five of two see 0, 0, 0, 1, 2.
    for queries, keys, seen in ((2, 5, (4, 5)), (5, 2, (0, 0, 0, 1, 2))):
        q, k = torch.zeros(queries, 1, keys), torch.zeros(keys, 1, keys)
        weights = attention(
            q, k, torch.eye(keys)[:, None], *cu_pair(queries, keys), queries, keys, causal=True, backend="reference"
        )
        for row, count in zip(weights[:, 0], seen, strict=True):
            assert row.tolist() == pytest.approx([1 / max(count, 1)] * count + [0] * (keys - count))


def cu_pair(queries, keys):
    return cu_seqlens([queries]), cu_seqlens([keys])


def test_without_lengths_the_offsets_are_read_from_the_device():
    drawn, at, options = case(
        {"lengths": [(3, 4), (5, 2)], "same": False, "even": False, "heads": (2, 1), "size": 32, "causal": False}
        | {"window": (-1, -1), "scale": None, "seed": 1},
        torch.float32,
    )
    q, k, v, _ = drawn
    with_lengths = attention(q, k, v, *at, **options, lengths_q=(3, 5), lengths_k=(4, 2), backend="sdpa")
    assert torch.equal(with_lengths, attention(q, k, v, *at, **options, backend="sdpa"))


@pytest.fixture
def gpu(monkeypatch):
    """Simulates a device of the given capability with the given flash modules."""

    def pretend(major, *makers, broken=()):
        calls = []
        standins.install(monkeypatch, calls, *makers, broken=broken)
        monkeypatch.setattr(kernels, "capability", lambda: major)
        return calls

    yield pretend
    monkeypatch.undo()
    standins.forget()


ALL = (standins.flash_attn_2, standins.flash_attn_3, standins.flash_attn_4, standins.torch_varlen)


@pytest.mark.parametrize(
    ("major", "installed", "chosen"),
    [
        (9, ALL, "flash_attn_3"),
        (9, ALL[:1] + ALL[2:], "flash_attn_4"),
        (9, (ALL[0], ALL[3]), "flash_attn_2"),
        (9, (ALL[3],), "torch_varlen"),
        (9, (), "sdpa"),
        (10, ALL, "flash_attn_4"),
        (8, ALL, "flash_attn_2"),
        (7, ALL, "sdpa"),
        (None, ALL, "sdpa"),
    ],
)
def test_the_fastest_supported_backend_is_chosen(gpu, caplog, major, installed, chosen):
    gpu(major, *installed)
    caplog.set_level(logging.INFO)
    assert in_use() == in_use() == use("auto") == chosen
    assert [record.message for record in caplog.records] == [f"attention uses {chosen}"]


@pytest.mark.parametrize("processor", ALL, ids=lambda processor: processor.__name__)
@settings(max_examples=5, deadline=None)
@given(shape=SHAPES.filter(lambda shape: shape["size"] % 8 == 0))
def test_kernels_get_their_arguments_in_their_order(processor, shape):
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = []
        standins.install(monkeypatch, calls, processor)
        monkeypatch.setattr(kernels, "capability", lambda: 9)
        drawn, at, options = case(shape, torch.bfloat16)
        assert use("auto") == processor.__name__
        made = with_gradients(drawn, at, options, None)
        assert calls == [processor.__name__] * (len(drawn[0]) > 0 and len(drawn[1]) > 0)
        assert_close(made, [t.double() for t in with_gradients(drawn, at, options, "reference")], 1e-2)
    standins.forget()


def test_unsupported_inputs_use_sdpa(gpu):
    calls = gpu(9, standins.flash_attn_4)
    at = (*cu_pair(4, 4), 4, 4)

    def run(size, dtype, **options):
        q = torch.randn(4, 2, size, dtype=dtype)
        attention(q, q, q, *at, **options)
        return len(calls)

    assert run(64, torch.bfloat16) == 1
    assert run(64, torch.float32) == 1, "flash kernels take half precision only"
    assert run(36, torch.bfloat16) == 1, "not a multiple of 8"
    assert run(192, torch.bfloat16) == 1, "larger than the CuTe kernels take"
    assert run(64, torch.bfloat16, dropout_p=0.1) == 1, "no dropout in flash-attn-4"
    assert run(64, torch.float16) == 2


def test_a_backend_requested_by_name_runs_or_is_refused_with_a_reason(gpu):
    gpu(9, standins.flash_attn_2, broken=["flash_attn_interface"])
    assert use("flash_attn_2") == in_use() == "flash_attn_2"
    assert use("reference") == in_use() == "reference"
    with pytest.raises(UserError, match=r"training.attention: flash_attn_4 cannot run here: flash_attn.cute cannot be"):
        use("flash_attn_4")
    assert in_use() == "reference"


def test_an_installed_module_that_does_not_work_is_skipped_with_a_warning(gpu, caplog):
    gpu(9, standins.flash_attn_2, broken=["flash_attn_interface"])
    assert use() == "flash_attn_2"
    assert "flash_attn_interface is installed but cannot be used" in caplog.text


@pytest.mark.parametrize(
    ("faulty", "says"),
    [
        (standins.flash_attn_4_without_backward, "NotImplementedError: backward pass of packed sequences"),
        (standins.flash_attn_3_of_another_build, "its results are"),
    ],
)
def test_a_kernel_that_fails_its_test_is_skipped_with_one_line(gpu, caplog, faulty, says):
    calls = gpu(9, faulty, standins.flash_attn_2)
    drawn, at, options = case(ONE_SHAPE, torch.bfloat16)
    expected = with_gradients([t.double() for t in drawn], at, options, "reference")
    calls.clear()
    for _ in range(2):
        assert_close(with_gradients(drawn, at, options, None), expected, 1e-2)
    assert calls == ["flash_attn_2"] * 2
    lines = [record.message for record in caplog.records if "another backend is used" in record.message]
    assert len(lines) == 1 and says in lines[0]
    assert "2 heads of 32, 1 of them for keys, in torch.bfloat16" in lines[0]


def test_a_requested_kernel_that_fails_its_test_stops_the_run(gpu):
    gpu(9, standins.flash_attn_4_without_backward, standins.flash_attn_2)
    assert use("flash_attn_4") == "flash_attn_4"
    drawn, at, options = case(ONE_SHAPE, torch.bfloat16)
    with pytest.raises(UserError, match=r"training.attention: flash_attn_4 fails with .*; use auto"):
        with_gradients(drawn, at, options, None)


def test_an_older_version_of_a_package_is_recognised(gpu):
    """The sources of flash-attn 2.8.3 contain a `flash_attn.cute` without lengths and without a backward pass."""
    gpu(9, standins.flash_attn_2, standins.flash_attn_cute_of_2)
    assert use() == "flash_attn_2"
    assert missing("flash_attn_4") == ("this version of flash_attn.cute lacks max_seqlen_q; install flash-attn-4")


def test_testing_a_kernel_does_not_affect_checkpointing(gpu):
    """Selective checkpointing records operators; a kernel's test must not be among them."""
    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    gpu(9, standins.flash_attn_2)
    drawn, at, options = case(ONE_SHAPE, torch.bfloat16)
    kept = partial(create_selective_checkpoint_contexts, [torch.ops.aten.einsum.default, torch.ops.aten.bmm.default])
    q, k, v = (t.clone().requires_grad_() for t in drawn[:3])
    made = checkpoint(lambda *qkv: attention(*qkv, *at, **options), q, k, v, use_reentrant=False, context_fn=kept)
    made.backward(drawn[3])
    expected = with_gradients([t.double() for t in drawn], at, options, "reference")
    assert_close((made.detach(), q.grad, k.grad, v.grad), expected, 1e-2)


def test_without_a_device_the_reason_is_named():
    assert all(missing(name) == "there is no CUDA device" for name in KERNELS) or torch.cuda.is_available()
    assert missing("sdpa") is None and missing("reference") is None
