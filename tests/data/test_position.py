"""Positions: small, and refused if they would point at other samples."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from raw_data import numbered_images, table
from streams import stream, write_set

from onediff.cli import main
from onediff.data.manifest import build_manifest, write_manifest
from onediff.data.position import Position, order_of
from onediff.errors import UserError


@pytest.fixture
def folders(tmp_path):
    return {write_set(tmp_path / "texts", [4, 6]): 2.0, write_set(tmp_path / "more", [5]): 1.0}


def stored(folders, **options):
    return json.loads(json.dumps(Position.start(stream(folders, 4, **options), 4, 8).to_json()))


def test_round_trip(folders):
    order = order_of(stream(folders, 4, pack=100), 4, 8)
    position = Position(order, ((3,), (2, 4, 9), (2,), (3,)))
    assert Position.from_json(json.loads(json.dumps(position.to_json())), order) == position


def test_a_position_is_small(tmp_path):
    made = stream({write_set(tmp_path / "texts", [1] * 200): 1.0}, 256)
    assert len(json.dumps(Position.start(made, 256, 8).to_json())) < 2000


def other_shards(folders):
    first = next(iter(folders))
    for shard in sorted(first.glob("*.tar")):
        (first / f"x-{shard.name}").write_bytes(shard.read_bytes())
        shard.unlink()
    return folders


def other_sizes(folders):
    """The same number of samples in shards of the same names, but split differently."""
    first = next(iter(folders))
    again = write_set(first.parents[1] / "again" / "texts", [5, 5])
    return {again: 2.0, **{folder: weight for folder, weight in folders.items() if folder != first}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: order_of(stream(f, 8), 8, 8), r"the global batch .* changed since the checkpoint \(4 → 8\)"),
        (lambda f: order_of(stream(f, 4, seed=1), 4, 8), r"data.seed changed .*\(0 → 1\)"),
        (lambda f: order_of(stream(f, 4), 4, 16), r"data.block changed .*\(8 → 16\)"),
        (lambda f: order_of(stream(f, 4, couple=True), 4, 8), r"couple changed .*\(False → True\)"),
        (
            lambda f: order_of(stream(dict.fromkeys(f, 1.0), 4), 4, 8),
            r"the weight of data set 'texts' changed .*\(2.0 → 1.0\)",
        ),
        (lambda f: order_of(stream(dict(reversed(f.items())), 4), 4, 8), "the list of data sets in the mix changed"),
        (lambda f: order_of(stream(dict([*f.items()][:1]), 4), 4, 8), "the list of data sets in the mix changed"),
        (lambda f: order_of(stream(other_shards(f), 4), 4, 8), "the shards of data set 'texts' changed"),
        (lambda f: order_of(stream(other_sizes(f), 4), 4, 8), "the shards of data set 'texts' changed"),
    ],
)
def test_what_would_change_the_order_is_refused(folders, change, message):
    before = stored(folders)
    with pytest.raises(UserError, match=message) as refused:
        Position.from_json(before, change(folders))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_shards_rewritten_in_another_order_are_detected_although_all_counts_are_the_same(folders):
    first = next(iter(folders))

    def with_checksums(of: str) -> dict[Path, float]:
        shards = tuple(replace(shard, sha256=of * 64) for shard in build_manifest(first).shards)
        write_manifest(replace(build_manifest(first), shards=shards))
        return folders

    before = stored(with_checksums("0"))
    Position.from_json(before, order_of(stream(with_checksums("0"), 4), 4, 8))
    with pytest.raises(UserError, match="the contents of the shards of data set 'texts' changed"):
        Position.from_json(before, order_of(stream(with_checksums("1"), 4), 4, 8))


def test_a_data_set_converted_again_with_another_seed_is_refused_and_with_the_same_seed_resumes(tmp_path, capsys):
    """As a user would: `--overwrite` leaves shards of the same names and counts, with samples in another order."""
    images = numbered_images(tmp_path / "images")
    rows = table(images / "t.csv", [{"image": f"{n}.png", "caption": f"image {n}"} for n in range(6)])
    command = ["data", "convert", "generic", "--table", str(rows), "--out", str(tmp_path / "mine")]
    command += ["--processes", "1", "--overwrite", "--seed"]
    mine = {tmp_path / "mine" / "train": 1.0}
    assert main([*command, "1"]) == 0
    before = stored(mine)
    assert main([*command, "1"]) == 0
    Position.from_json(before, order_of(stream(mine, 4), 4, 8))
    assert main([*command, "2"]) == 0
    with pytest.raises(
        UserError, match="cannot resume in the data: the contents of the shards of data set 'mine' changed"
    ):
        Position.from_json(before, order_of(stream(mine, 4), 4, 8))


def test_an_older_position_without_checksums_resumes(folders):
    before = stored(folders)
    for source in before["order"]["sources"]:
        del source["contents"]
    assert Position.from_json(before, order_of(stream(folders, 4), 4, 8)).cursors == ((0,),) * 4


def test_an_older_position_stored_as_plain_numbers_resumes(folders):
    """The format before cursors were lists."""
    before = stored(folders)
    del before["cursors"]
    before["draws"] = [3, 2, [1, 7], 2]
    assert Position.from_json(before, order_of(stream(folders, 4, pack=100), 4, 8), other_order=True).cursors == (
        (3,),
        (2,),
        (1, 7),
        (2,),
    )


def test_another_order_is_accepted_if_allowed(folders, caplog):
    """Continues at the same cursors, or evenly over a new number of lanes, and names each change."""
    before = stored(folders) | {"cursors": [[5], [4], [4], [4]]}
    reseeded = order_of(stream(folders, 4, seed=1), 4, 8)
    assert Position.from_json(before, reseeded, other_order=True) == Position(reseeded, ((5,), (4,), (4,), (4,)))
    assert "data.seed changed since the checkpoint (0 → 1)" in caplog.text
    wider = order_of(stream(dict([*folders.items()][:1]), 8), 8, 8)
    assert Position.from_json(before, wider, other_order=True) == Position(wider, ((3,),) * 8)
    assert "the list of data sets in the mix changed" in caplog.text
