"""Hard couples: similar but not the same, each sample once first and once second, in the same order from any position."""

import json
import tarfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import add, global_batches, png, row_at, stream, unbroken, write_set

from onediff.config.training import PhaseConfig
from onediff.data.coupling import LONGEST_WAIT, WINDOW, Couples, caption_in, similar_captions
from onediff.data.lanes import Lanes
from onediff.data.packing import LOOK_AHEAD, Packer
from onediff.data.position import Position, order_of
from onediff.errors import UserError

LANES, BLOCK = 4, 8
COLOURS, THINGS = ("red", "blue", "green"), ("cube", "ball", "cone", "car")


def shared(first: str, second: str) -> float:
    """The share of their words that two captions have in common."""
    a, b = set(first.split()), set(second.split())
    return len(a & b) / len(a | b)


def captions(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [
        f"a {random.choice(COLOURS)} {random.choice(THINGS)} at the {random.choice(['left', 'right'])} of a"
        f" {random.choice(COLOURS)} {random.choice(THINGS)}"
        for _ in range(count)
    ]


def test_neighbours_share_their_words_and_are_not_the_same():
    said = captions(200)
    ring = similar_captions(said)
    assert sorted(ring) == list(range(200))
    couples = [(said[a], said[b]) for a, b in zip(ring, ring[1:] + ring[:1], strict=True)]
    by_chance = np.mean([shared(a, b) for a, b in zip(said, said[1:] + said[:1], strict=True)])
    assert np.mean([shared(a, b) for a, b in couples]) > by_chance + 0.2
    assert sum(a == b for a, b in couples) < 10, "the same caption twice is the last choice"


@settings(max_examples=60, deadline=None)
@given(said=st.lists(st.text("ab ", max_size=6), min_size=1, max_size=12))
def test_any_captions_give_a_ring(said):
    assert sorted(similar_captions(said)) == list(range(len(said)))


def test_rare_words_count_more_than_common_ones():
    said = ["the car is red", "the dog is red", "the zebra runs", "a zebra stands", "the cat is red", "the sun is red"]
    ring = similar_captions(said)
    assert abs(ring.index(2) - ring.index(3)) == 1


def test_the_captions_of_a_sample_are_joined():
    assert caption_in(b'{"captions": ["one", "two"]}') == "one two"
    turns = [{"from": "human", "value": "what"}, {"from": "gpt", "value": "a cat"}]
    assert caption_in(json.dumps({"conversations": turns}).encode()) == "a cat"
    for unreadable in (b"", b"{", b"[]", b'{"captions": 3}', b'{"captions": [1]}', b"{}"):
        assert caption_in(unreadable) == ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Single images in uneven shards; one image and one JSON record cannot be read."""
    return write_set(
        tmp_path_factory.mktemp("sets") / "singles", [1, 40, 7, 22], "single", {9: "bad_image", 30: "bad_json"}
    )


def test_each_sample_is_once_the_first_and_once_the_second_of_an_epoch(folder):
    made = stream({folder: 1.0}, LANES, couple="similar_captions", block=BLOCK)
    lanes = made.sources[0].lanes
    for epoch in (0, 3):
        firsts, seconds = Counter(), Counter()
        for lane in range(LANES):
            for position in range(epoch * lanes.length(lane), (epoch + 1) * lanes.length(lane)):
                first, second = lanes.at(lane, position), made.couples[0].partner(lane, position)
                assert first != second and second.epoch == epoch
                firsts[first] += 1
                seconds[second] += 1
        assert firsts == seconds
        assert len(firsts) == 70 and set(firsts.values()) == {1}


def test_hard_couples_are_harder_and_come_in_the_same_order_of_firsts(folder):
    hard = stream({folder: 1.0}, 1, couple="similar_captions", block=70)
    easy = stream({folder: 1.0}, 1, couple=True, block=70)
    said = {
        place: caption_in(hard.sources[0].shards.record(place.shard, place.sample))
        for place in hard.sources[0].lanes.places(0, 0)
    }
    assert len(said) == 70 and list(said.values()).count("") == 1
    alike = [
        np.mean(
            [shared(said[made.sources[0].lanes.at(0, at)], said[made.couples[0].partner(0, at)]) for at in range(70)]
        )
        for made in (hard, easy)
    ]
    assert alike[0] > alike[1] + 0.1
    assert [hard.sources[0].lanes.at(0, at) for at in range(70)] == [
        easy.sources[0].lanes.at(0, at) for at in range(70)
    ]
    row, other = row_at(hard, 0, 0), row_at(easy, 0, 0)
    assert row.is_pair and row.ids[0] == other.ids[0] and len(set(row.ids)) == 2


@pytest.mark.parametrize("pack", [None, 100])
def test_hard_couples_are_the_same_for_any_number_of_ranks_and_from_any_position(folder, pack):
    made = stream({folder: 1.0}, LANES, couple="similar_captions", block=BLOCK, pack=pack)
    batches, positions = unbroken(made, LANES, BLOCK, 24)
    for stop, ranks, workers in ((0, 4, 0), (5, 2, 0), (17, 1, 3), (20, 4, 0)):
        again = stream({folder: 1.0}, LANES, couple="similar_captions", block=BLOCK, pack=pack)
        stored = Position.from_json(json.loads(json.dumps(positions[stop].to_json())), order_of(again, LANES, BLOCK))
        found, end = global_batches(again, LANES, stored, 4, ranks, workers)
        assert found == batches[stop : stop + 4]
        assert end == positions[stop + 4]


def test_another_rule_gives_another_order(folder):
    stored = Position.start(stream({folder: 1.0}, LANES, couple=True), LANES, BLOCK).to_json()
    hard = order_of(stream({folder: 1.0}, LANES, couple="similar_captions"), LANES, BLOCK)
    with pytest.raises(UserError, match=r"couple changed since the checkpoint \(True → 'similar_captions'\)"):
        Position.from_json(stored, hard)


def test_a_rule_is_applied_to_a_large_block_window_by_window():
    seen = []
    lanes = Lanes(np.array([3000]), 1, seed=0, block=3000)
    couples = Couples("similar_captions", lanes, lambda shard, sample: b'{"captions": ["%d"]}' % sample)
    couples.rule = lambda said: seen.append(len(said)) or range(len(said))
    assert couples.partner(0, 0).sample == (lanes.at(0, 0).sample + 1) % 3000
    assert seen == [WINDOW, WINDOW, 3000 - 2 * WINDOW]
    assert LONGEST_WAIT == LOOK_AHEAD**2
    couples.partner(0, 2999)
    assert len(seen) == 3, "a block is read once"


def test_each_block_is_read_once_though_packed_rows_wait_across_its_end(folder, monkeypatch):
    made = stream({folder: 1.0}, 1, couple="similar_captions", block=35, pack=100)
    seen = []
    rule = made.couples[0].rule
    monkeypatch.setattr(made.couples[0], "rule", lambda said: seen.append(len(said)) or rule(said))
    packer, cursor = Packer(made, 100), (0,)
    while cursor[-1] < 1500:
        _, cursor = packer.chosen(0, cursor, [])
    assert seen == [35] * ((cursor[-1] - 1) // 35 + 1)
    assert len(made.couples[0]._rings[0]) < 1024 / 35 + 3


def put_rule(folder, monkeypatch, name: str, code: str) -> None:
    """Installs a package with a rule as an entry point."""
    (folder / f"{name}-1.0.dist-info").mkdir()
    (folder / f"{name}_rules.py").write_text(code)
    (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(
        f"[onediff.couples]\n{name} = {name}_rules:ring\n"
    )
    monkeypatch.syspath_prepend(str(folder))


def phase(**values: object) -> PhaseConfig:
    return PhaseConfig.model_validate({"mix": {"a": 1}, "steps": 1, "global_batch": 2, "micro_batch": 1, **values})


def test_a_rule_of_another_package(folder, tmp_path, monkeypatch):
    put_rule(
        tmp_path,
        monkeypatch,
        "by_length",
        "def ring(said): return sorted(range(len(said)), key=lambda i: len(said[i]))",
    )
    assert phase(couple="by_length").couple == "by_length"
    made = stream({folder: 1.0}, 1, couple="by_length", block=70)
    source = made.sources[0]
    lengths = {at: len(caption_in(source.shards.record(at.shard, at.sample))) for at in source.lanes.places(0, 0)}
    steps = [lengths[made.couples[0].partner(0, at)] - lengths[source.lanes.at(0, at)] for at in range(70)]
    assert sum(step < 0 for step in steps) == 1, "only from the last of the ring to its first"


def test_unknown_and_faulty_rules_are_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no coupling rule 'similar_caption' \(did you mean 'similar_captions'\?\)"):
        phase(couple="similar_caption")
    put_rule(tmp_path, monkeypatch, "lossy", "def ring(said): return range(len(said) - 1)")
    with pytest.raises(UserError, match=r"the rule 'lossy' must return every index of the \d+ captions once"):
        row_at(stream({folder: 1.0}, 1, couple="lossy"), 0, 0)


def test_a_set_smaller_than_the_lanes_couples_no_sample_with_itself(tmp_path):
    split = tmp_path / "few" / "train"
    split.mkdir(parents=True)
    with tarfile.open(split / "0.tar", "w") as tar:
        for number in range(3):
            record = {"id": str(number), "source": "s", "task": "t", "split": "train", "captions": ["a cat"]}
            add(tar, f"{number}.png", png(number))
            add(tar, f"{number}.json", json.dumps(record).encode())
    made = stream({split: 1.0}, 16, couple="similar_captions")
    for lane in range(16):
        for index in range(6):
            assert len(set(row_at(made, lane, index).ids)) == 2
