"""Packed rows: full, exact, seekable, and equivalent to unpacked samples for the model."""

import itertools
import json
import random
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TINY, rows
from packed import KINDS, gradients
from places import SUPPORT
from processes import run_ranks
from streams import global_batches, stream, write_set

from onediff.config.model import ModelConfig
from onediff.data.ahead import rows as rows_of
from onediff.data.packing import LOOK_AHEAD, Packer, fullest
from onediff.data.position import Position, order_of
from onediff.data.rows import collate, collate_packed
from onediff.errors import UserError
from onediff.model import attention
from onediff.model.onediff import OneDiffModel

LANES, TOKENS = 4, 100


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), room=st.integers(30, 80))
def test_no_other_choice_fills_a_row_better(lengths, room):
    chosen = fullest(lengths, room)
    assert chosen[0] == 0 and chosen == sorted(set(chosen))
    sums = (
        lengths[0] + sum(others)
        for count in range(len(lengths))
        for others in itertools.combinations(lengths[1:], count)
    )
    assert sum(lengths[index] for index in chosen) == max(total for total in sums if total <= room)


@pytest.mark.parametrize("tokens", [4096, 8192])
def test_rows_of_a_usual_mix_are_full(tokens):
    """The lengths of the paper's second phase at 336 px: a third are pairs, with LLaVA's single images and some texts."""
    drawn = random.Random(0)
    lengths = {}

    def measured(lane, index):
        assert index == len(lengths), "each sample is measured once"
        text = min(1400, int(drawn.lognormvariate(0, 0.6) * 250))
        lengths[index] = drawn.choices([2 * 576 + 64 + text // 3, 576 + text, 2 * text + 20], [335, 625, 40])[0]
        return lengths[index]

    packer = Packer(SimpleNamespace(tokens=measured), tokens)
    cursor, read = (0,), []
    for _ in range(200):
        chosen, cursor = packer.chosen(0, cursor, [])
        read += chosen
    assert sum(lengths[index] for index in read) >= 0.97 * 200 * tokens
    assert sorted([*read, *cursor[:-1]]) == list(range(cursor[-1]))
    assert len(cursor) <= LOOK_AHEAD


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return {
        write_set(folder / "pairs", [1, 23, 4], "pair", {5: "bad_image", 6: "missing_half"}): 2.0,
        write_set(folder / "singles", [9, 17], "single", {0: "too_many_pixels"}): 1.0,
        write_set(folder / "texts", [3, 1, 1, 30], "text", {33: "bad_json"}): 1.0,
    }


@pytest.fixture(scope="module")
def unbroken(mixed):
    made = stream(mixed, LANES, pack=TOKENS)
    position = Position.start(made, LANES, 8)
    batches, positions = [], [position]
    for _ in range(25):
        (batch,), position = global_batches(made, LANES, position, 1, ranks=1, workers=0)
        batches.append(batch)
        positions.append(position)
    return batches, positions


def resumed(made, position):
    return Position.from_json(json.loads(json.dumps(position.to_json())), order_of(made, LANES, 8))


@pytest.mark.parametrize(
    ("stop", "ranks", "workers", "micro_batch"), [(0, 2, 0, 1), (3, 4, 0, 1), (11, 1, 3, 4), (19, 2, 1, 2)]
)
def test_rows_are_the_same_for_any_number_of_ranks_and_workers_and_from_any_position(
    mixed, unbroken, stop, ranks, workers, micro_batch
):
    made = stream(mixed, LANES, pack=TOKENS)
    batches, end = global_batches(made, LANES, resumed(made, unbroken[1][stop]), 4, ranks, workers, micro_batch)
    assert batches == unbroken[0][stop : stop + 4]
    assert end == unbroken[1][stop + 4]


def test_no_sample_is_lost_and_none_comes_twice(mixed, unbroken):
    """Each good sample that a lane has passed is either waiting or has been in a row, once per visit."""
    made = stream(mixed, LANES, pack=TOKENS)
    batches, positions = unbroken
    expected = Counter()
    for lane, (*waiting, next_new) in enumerate(positions[-1].cursors):
        for index in set(range(next_new)) - set(waiting):
            source, of_source = made.mix.at(lane, index)
            at = made.sources[source].lanes.at(lane, of_source)
            flat = int(made.sources[source].lanes.shard_samples[: at.shard].sum()) + at.sample
            expected[f"{made.sources[source].name}/{flat}"] += 1
    bad = {"pairs/5", "pairs/6", "singles/0", "texts/33"}
    assert bad <= set(expected)
    found = Counter(id for batch in batches for row in batch for id in row)
    assert found == Counter({id: count for id, count in expected.items() if id not in bad})
    assert max(len(cursor) for cursor in positions[-1].cursors) <= LOOK_AHEAD


def test_resuming_measures_waiting_samples_and_rereads_nothing(mixed, unbroken, monkeypatch):
    made = stream(mixed, LANES, pack=TOKENS)
    cursor = resumed(made, unbroken[1][20]).cursors[1]
    measured, read = [], []
    tokens, one = made.tokens, made.one
    monkeypatch.setattr(made, "tokens", lambda lane, index: measured.append(index) or tokens(lane, index))
    monkeypatch.setattr(made, "one", lambda lane, index: read.append(index) or one(lane, index))
    _, samples, _ = next(rows_of(made, {1: cursor}, workers=0, prefetch=1))
    assert tuple(id for row in samples for id in row.ids) == unbroken[0][20][1]
    assert measured[: len(cursor) - 1] == list(cursor[:-1]) and min(measured) == cursor[0]
    assert len(read) == len(set(read)) < LOOK_AHEAD


def test_packing_cannot_be_changed_while_a_phase_runs(mixed, unbroken):
    with pytest.raises(UserError, match=r"pack changed since the checkpoint \(100 → None\)"):
        resumed(stream(mixed, LANES), unbroken[1][3])
    made = stream(mixed, LANES)
    stored = unbroken[1][3].to_json()
    assert Position.from_json(stored, order_of(made, LANES, 8), other_order=True).cursors == tuple(
        cursor[-1:] for cursor in unbroken[1][3].cursors
    )


def test_the_reported_fill_equals_that_of_the_packers_rows(mixed, unbroken):
    made = stream(mixed, LANES, pack=TOKENS)
    fill = Packer(made, TOKENS).fill(LANES, 100)
    found = sum(len(row) for batch in unbroken[0] for row in batch) / (25 * LANES)
    assert fill.samples == pytest.approx(found, rel=0.05)
    first = islice(rows_of(made, {1: (0,)}, workers=0, prefetch=1), 25)
    real = sum(len(sample.token_ids) for _, samples, _ in first for sample in samples)
    assert fill.real == pytest.approx(real / 25 / TOKENS, rel=0.05) and 0.9 < fill.real <= 1


def test_places_labels_and_positions_of_a_packed_row():
    made = rows("single", "pair", "text")
    lengths = [len(row.token_ids) for row in made]
    batch = collate_packed([made[:2], made[2:]], 80)
    assert batch.token_ids.shape == (2, 80)
    assert batch.segments.lengths == (*lengths[:2], 80 - sum(lengths[:2]), lengths[2], 80 - lengths[2])
    assert batch.segments.cu_seqlens.tolist() == [0, *itertools.accumulate(batch.segments.lengths)]
    assert batch.segment_ids[0].tolist() == [1] * lengths[0] + [2] * lengths[1] + [0] * (80 - sum(lengths[:2]))
    assert batch.position_ids[0, : sum(lengths[:2])].tolist() == [*range(lengths[0]), *range(lengths[1])]
    assert batch.target_ids.equal(torch.cat([row.token_ids[row.is_target] for row in made]))
    assert batch.info["tokens"] == sum(lengths) and batch.info["samples"] == 3 and len(batch.info["ids"]) == 2
    with pytest.raises(AssertionError):
        collate_packed([made], 10)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "reference"])
def test_loss_and_gradients_are_those_of_the_samples_alone(backend, monkeypatch):
    """`eager` is transformers' own attention with a mask; the others are ours, told where the samples lie."""
    monkeypatch.setattr(attention, "_in_use", "sdpa" if backend == "eager" else backend)
    torch.manual_seed(0)
    model = OneDiffModel(ModelConfig.model_validate(TINY), attention="eager" if backend == "eager" else None).eval()
    made = rows(*KINDS)
    alone, alone_gradients = gradients(model, collate(made))
    packed, packed_gradients = gradients(model, collate_packed([made[:3], made[3:]], 120))
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    assert_gradients_agree(packed_gradients, alone_gradients)


def assert_gradients_agree(found, expected):
    """To 1e-5 of each; to a part of the whole where a gradient is zero but for rounding (biases of keys)."""
    assert set(found) == set(expected)
    whole = float(torch.stack([gradient.norm() for gradient in expected.values()]).norm())
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-7 * whole, name


def test_packed_rows_equal_their_samples_alone_under_tensor_parallelism(tmp_path):
    """Two tensor-parallel ranks, each with half of the heads, have the same losses as one process, packed or not."""
    run_ranks(SUPPORT / "packing_worker.py", [str(tmp_path)], 2)
    torch.manual_seed(0)
    model = OneDiffModel(ModelConfig.model_validate(TINY)).eval()
    losses, _ = gradients(model, collate(rows(*KINDS)))
    for rank in range(2):
        alone, packed = (torch.load(tmp_path / f"{rank}-{name}.pt") for name in ("alone", "packed"))
        torch.testing.assert_close(packed[0], losses, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone[0], losses, rtol=1e-5, atol=1e-5)
        assert_gradients_agree(packed[1], alone[1])
