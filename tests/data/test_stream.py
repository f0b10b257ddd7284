"""The stream: a row is a function of lane and index; shards written by others; damaged shards."""

import io
import os
import subprocess
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image
from streams import add, make_processor, members, readable, row_at, stream, write_set

from onediff.config.data import CacheConfig
from onediff.data import shards as shards_module
from onediff.data.cache import ShardCache
from onediff.data.index import BLOCK, read_index
from onediff.data.manifest import build_manifest, write_manifest
from onediff.data.sample import BadSample, parse_sample
from onediff.data.shards import Shards
from onediff.data.stream import Source
from onediff.errors import UserError


def ids(made, lanes: int, indexes: int) -> list[tuple[str, ...]]:
    return [row_at(made, lane, index).ids for lane in range(lanes) for index in range(indexes)]


def test_a_row_is_a_function_of_lane_and_index(tmp_path):
    folder = write_set(tmp_path / "pairs", [5, 8], "pair")
    made, again = stream({folder: 1.0}, 2), stream({folder: 1.0}, 2)
    there = [row_at(made, 1, index) for index in range(12)]
    for index in (11, 0, 5, 5):
        row, behind = readable(again, 1, index)
        assert row.ids == there[index].ids
        assert row.token_ids.equal(there[index].token_ids)
        assert row.images.equal(there[index].images)
        assert behind == index + 1


def test_another_seed_gives_another_order(tmp_path):
    folder = write_set(tmp_path / "texts", [60])
    assert ids(stream({folder: 1.0}, 2), 2, 30) != ids(stream({folder: 1.0}, 2, seed=1), 2, 30)


def test_a_source_of_a_mix_keeps_its_order(tmp_path):
    """Adding a second source does not move samples of the first."""
    texts = write_set(tmp_path / "texts", [13, 2])
    alone = [made.ids for made in (row_at(stream({texts: 1.0}, 1), 0, index) for index in range(20))]
    both = stream({texts: 1.0, write_set(tmp_path / "more", [4]): 3.0}, 1)
    drawn = [row_at(both, 0, index) for index in range(80)]
    assert [row.ids for row in drawn if row.source == 0] == alone
    assert sum(row.source == 1 for row in drawn) == 60
    assert both.epochs(0, (80,)) == {"texts": pytest.approx(20 / 15), "more": pytest.approx(60 / 4)}


def test_couples_hold_both_captions_and_both_images(tmp_path):
    folder = write_set(tmp_path / "singles", [6], "single")
    made = stream({folder: 1.0}, 1, couple=True)
    alone = stream({folder: 1.0}, 1)
    row = row_at(made, 0, 0)
    single = row_at(alone, 0, 0)
    assert row.is_pair
    assert row.ids[0] == single.ids[0] != row.ids[1]
    assert row.images[0].equal(single.images[0])
    assert not row.images[1].equal(row.images[0])


def test_couples_of_texts_are_skipped(tmp_path):
    made = stream({write_set(tmp_path / "texts", [6]): 1.0}, 1, couple=True, bad_in_a_row=3)
    with pytest.raises(UserError, match="not_single"):
        row_at(made, 0, 0)


def written_with_tar(folder):
    """Keys in directories, members of a sample apart from each other, made by the command `tar`."""
    source = folder.parent / "files"
    for number in range(5):
        for suffix, data in members("pair", number, "others").items():
            path = source / f"b{number % 2}" / f"{number:04d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*.*"))
    subprocess.run(["tar", "-C", str(source), "-cf", str(folder / "0.tar"), *names], check=True, timeout=300)


def written_with_webdataset(folder):
    with webdataset.TarWriter(str(folder / "0.tar")) as out:
        for number in range(5):
            out.write({"__key__": f"x/{number:04d}", **members("pair", number, "others")})


def written_with_webp(folder):
    with tarfile.open(folder / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(5):
            for suffix, data in members("pair", number, "others").items():
                if suffix.endswith("png"):
                    out = io.BytesIO()
                    Image.open(io.BytesIO(data)).save(out, "WEBP", lossless=True)
                    suffix, data = suffix.replace("png", "webp"), out.getvalue()
                add(tar, f"{'long-' * 30}{number}.{suffix}", data)


@pytest.mark.parametrize("write", [written_with_tar, written_with_webdataset, written_with_webp])
def test_shards_written_by_other_tools(tmp_path, write):
    expected = stream({write_set(tmp_path / "others", [5], "pair"): 1.0}, 1)
    folder = tmp_path / "theirs" / "train"
    folder.mkdir(parents=True)
    write(folder)
    made = stream({folder: 1.0}, 1)
    rows = {row.ids: row for row in (row_at(made, 0, index) for index in range(5))}
    for row in (row_at(expected, 0, index) for index in range(5)):
        assert rows[row.ids].images.equal(row.images)
        assert rows[row.ids].token_ids.equal(row.token_ids)


def test_a_shard_truncated_after_its_index_was_built(tmp_path):
    """The order of the remaining samples does not change; the lost ones count as truncated."""
    folder = write_set(tmp_path / "texts", [20])
    shard = folder / "part-000.tar"
    whole = ids(stream({folder: 1.0}, 1), 1, 20)
    made = stream({folder: 1.0}, 1)
    with open(shard, "r+b") as file:
        file.truncate(read_index(shard)[15].members[0].offset)
    kept = [row for row in (row_at(made, 0, index) for index in range(20)) if not row.skipped]
    assert [row.ids for row in kept] == [one for one in whole if int(one[0].split("/")[1]) < 15]
    with pytest.raises(BadSample, match="truncated"):
        made.sources[0].shards.read(0, 15)


def test_mutated_shards_never_crash_and_keep_the_order(tmp_path):
    """Flipped bytes: every row equals the good row at its position except for the flipped bytes, or is skipped."""
    folder = write_set(tmp_path / "pairs", [12], "pair")
    write_manifest(build_manifest(folder))
    shard = folder / "part-000.tar"
    whole = shard.read_bytes()
    good = stream({folder: 1.0}, 1)
    rows = [row_at(good, 0, index) for index in range(12)]
    stored = (folder / "part-000.tar.index").read_bytes()
    random = np.random.default_rng(0)
    skipped = intact = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 12):
            damaged[at] = random.integers(0, 256)
        shard.write_bytes(damaged)
        (folder / "part-000.tar.index").write_bytes(stored)
        made = stream({folder: 1.0}, 1, bad_in_a_row=1)
        for index in range(12):
            try:
                row = row_at(made, 0, index)
            except UserError:  # skipped
                skipped += 1
                continue
            match = [i for i, one in enumerate(rows) if one.images.equal(row.images)]
            assert match in ([], [index])
            intact += bool(match)
    assert skipped > 20
    assert intact > 200


def mutated(whole: bytes, spans: list[tuple[int, int]], random: np.random.Generator) -> bytes:
    """Flipped bytes, a truncation, or two swapped members (header and data, not the first and the last)."""
    kind = random.integers(3)
    if kind == 0:
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), random.integers(1, 20)):
            damaged[at] = random.integers(0, 256)
        return bytes(damaged)
    if kind == 1:
        return whole[: random.integers(0, len(whole))]
    (a, b), (c, d) = sorted(spans[i] for i in random.choice(np.arange(1, len(spans) - 1), 2, replace=False))
    return whole[:a] + whole[c:d] + whole[b:c] + whole[a:b] + whole[d:]


def test_a_thousand_mutations_of_a_shard(tmp_path):
    """Each sample equals or differs from the good one at its position, or is skipped; none moves to another position.

    With the index of the undamaged shard, and for flipped bytes and truncations also without it.
    """
    folder = write_set(tmp_path / "pairs", [5], "pair")
    write_manifest(build_manifest(folder))
    shard, index = folder / "part-000.tar", folder / "part-000.tar.index"
    whole, stored = shard.read_bytes(), index.read_bytes()
    source = Source.open("pairs", folder, 1, 0, 8)
    good = [source.shards.read(0, number) for number in range(5)]
    every = [member for span in read_index(shard) for member in span.members]
    spans = [(member.offset - BLOCK, member.offset + -(-member.size // BLOCK) * BLOCK) for member in every]
    processor, random = make_processor(), np.random.default_rng(0)
    intact = skipped = 0
    for turn in range(1000):
        damaged = mutated(whole, spans, random)
        shard.write_bytes(damaged)
        index.write_bytes(stored)
        if turn % 2 and sorted(damaged) != sorted(whole):
            index.unlink()
        shards = Shards(folder, source.shards.shards, source.shards.cache)
        for number in range(5):
            try:
                found = shards.read(0, number)
                if found == good[number]:
                    intact += 1
                    continue
                sample = parse_sample(found)
                assert found not in good
                if turn % 20 < 2:
                    processor.row(sample, None, 0)
            except BadSample:
                skipped += 1
        for descriptor in shards._files.values():
            os.close(descriptor)
    assert intact > 1500
    assert skipped > 500


def test_many_lanes_read_each_index_once_and_few_hold_few(tmp_path, monkeypatch):
    """Open files stay within the system's limit; an index is kept while its shard is in use."""
    monkeypatch.setattr(shards_module, "KEPT", 4)
    monkeypatch.setattr(shards_module, "UNUSED", 100)
    monkeypatch.setattr(shards_module, "most_files", lambda: 3)
    indexed = []
    read_once = shards_module.read_index
    monkeypatch.setattr(shards_module, "read_index", lambda path: indexed.append(path) or read_once(path))
    folder = write_set(tmp_path / "texts", [2] * 20)
    shards = Shards(folder, build_manifest(folder).shards, ShardCache(CacheConfig()))
    for _ in range(3):
        for shard in range(20):
            assert shards.read(shard, 1)["json"]
            assert len(shards._files) <= 3
    assert len(indexed) == 20, "twenty lanes in twenty shards"
    for _ in range(101):
        shards.read(0, 0)
    assert len(shards._indexes) == 4
    assert shards.keys(7) == ["000014", "000015"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda split: split.rename(split.with_name("gone")), "no such folder of shards"),
        (lambda split: [path.unlink() for path in split.iterdir()], "no tar shards in this folder"),
        (lambda split: (split / "manifest.json").write_text("{"), "not a manifest"),
    ],
)
def test_a_missing_data_set_is_refused(tmp_path, fault, message):
    split = write_set(tmp_path / "texts", [3])
    fault(split)
    with pytest.raises(UserError, match=message) as refused:
        Source.open("texts", split, lanes=2, seed=0, block=8)
    assert str(split) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_empty_shard_among_others(tmp_path):
    folder = write_set(tmp_path / "texts", [2, 0, 3])
    made = stream({folder: 1.0}, 1)
    assert sorted(ids(made, 1, 5)) == [(f"texts/{i}",) for i in range(5)]


def test_one_of_several_captions_is_drawn_by_seed_and_epoch(tmp_path):
    folder = tmp_path / "many" / "train"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "0.tar", "w") as tar:
        record = b'{"id": 1, "source": "s", "task": "t", "split": "train", "captions": ["red", "blue", "two", "cube"]}'
        add(tar, "a.json", record)
    made = stream({folder: 1.0}, 1)
    tokenizer = make_processor().prompter.tokenizer
    said = [tokenizer.decode(row.token_ids[row.is_target]) for row in (row_at(made, 0, index) for index in range(40))]
    assert len(set(said)) == 4
    assert said == [
        tokenizer.decode(row.token_ids[row.is_target])
        for row in (row_at(stream({folder: 1.0}, 1), 0, index) for index in range(40))
    ]
