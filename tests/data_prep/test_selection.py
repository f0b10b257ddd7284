"""Data sets made of others: merged, filtered, cut down, resharded, divided; exact, and with every removal listed."""

import dataclasses
import io
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_data import encoded
from test_readers import records
from test_retrieve import small_vision_model
from test_writer import contents

from data_prep.embedding import near_by_cosine
from data_prep.near import image_hash, near_duplicates
from data_prep.where import Where
from data_prep.writer import write_dataset
from onediff.cli import main
from onediff.data.heldout import HeldOut
from onediff.data.manifest import read_manifest
from onediff.data.sample import Sample
from onediff.errors import UserError


def photograph(seed: int, side: int = 64, form: str = "PNG", **options: object) -> bytes:
    """Smooth blots, another image for each seed."""
    grain = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(grain).resize((side, side), Image.Resampling.BICUBIC).save(out, form, **options)
    return out.getvalue()


def sample(i: int, split: str, source: str) -> Sample:
    images = {"before": photograph(2 * i, 64 if i % 2 else 96), "after": photograph(2 * i + 1)}
    meta = {"change_type": ("add", "move")[i % 2], "site": i // 4, "score": i / 10}
    if i % 3:
        meta.pop("score")
    return Sample(f"{source} {i}", source, "pair", split, (f"{source} {i} moved",), meta=meta, images=images)


def make(folder: Path, source: str = "s", licence: str = "CC0", train: int = 24, test: int = 4) -> Path:
    for split, count in (("train", train), ("test", test)):
        made = partial(sample, split=split, source=source)
        fixed = {"shard_samples": 7, "processes": 1, "progress": False, "licence": licence, "source": f"of {source}"}
        write_dataset(made, count, folder, name=source, split=split, **fixed)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "set")


def run(*words: object) -> int:
    return main(["data", *map(str, words), "--processes", "1"])


def test_what_a_condition_removes_is_counted_and_listed(folder: Path, tmp_path: Path, capsys) -> None:
    where = "change_type == 'add' and width >= 90 and not (site in (1, 2) or score > 1.5)"
    assert run("filter", folder, "--where", where, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    kept = {f"s {i}" for i in range(24) if i % 2 == 0 and i // 4 not in (1, 2) and not (i % 3 == 0 and i / 10 > 1.5)}
    assert set(records(tmp_path / "out/train")) == kept
    removed = [json.loads(line) for line in (tmp_path / "out/removed.jsonl").read_text().splitlines()]
    assert f"where: removed {len(removed)} samples" in said and len(removed) == 28 - len(kept) - 2
    assert {line["id"] for line in removed if line["split"] == "train"} == {f"s {i}" for i in range(24)} - kept
    before = contents(tmp_path / "out/train")
    assert run("filter", folder, "--where", where, "--out", tmp_path / "out") == 0
    assert contents(tmp_path / "out/train") == before
    assert run("filter", folder, "--where", "widht > 3", "--out", tmp_path / "two") == 2
    assert "no sample has a column 'widht'; did you mean 'width'?" in capsys.readouterr().err
    assert run("filter", folder, "--where", "words > 100", "--out", tmp_path / "two") == 2
    assert "no sample is left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "columns", "holds"),
    [
        ("a < b < 3", {"a": 1, "b": 2}, True),
        ("a + 1 == 2 or missing == 4", {"a": 1}, True),
        ("missing < 4", {}, False),
        ("not missing", {}, True),
        ("'cat' in caption", {"caption": "a cat left"}, True),
        ("a < 'x'", {"a": 1}, False),
        ("-a / 0 < 1", {"a": 1}, False),
        ("-a < 1", {"a": "x"}, False),
        ("a >= 10 and -a < 0 and a + 1 == 11 and a in (9, 10)", {"a": "10"}, True),  # as a CSV has it
        ("a != 2 or a not in (1, 2)", {"a": "2"}, False),
    ],
)
def test_conditions(text: str, columns: dict, holds: bool) -> None:
    assert Where(text)(columns) is holds


@pytest.mark.parametrize(
    "text", ["", "a ==", "open('x')", "a.b", "a if b else c", "[x for x in y]", "lambda: 1", "a ** 9"]
)
def test_a_condition_runs_no_code(text: str) -> None:
    with pytest.raises(UserError, match="--where"):
        Where(text)


def test_near_duplicates_are_found_in_another_size_quality_and_format(tmp_path: Path, capsys) -> None:
    def copy(i: int, split: str) -> Sample:
        pair = (3, 4) if i == 1 else (2 * i + 30, 2 * i + 31)
        images = {
            role: photograph(seed, 200, "JPEG", quality=60)
            for role, seed in zip(("before", "after"), pair, strict=True)
        }
        return Sample(f"{split} {i}", "s", "pair", split, ("it moved",), images=images)

    def original(i: int, split: str) -> Sample:
        return dataclasses.replace(
            copy(i, split), images={"before": photograph(2 * i + 1), "after": photograph(2 * i + 2)}
        )

    write_dataset(partial(copy, split="train"), 3, tmp_path / "set", name="d", split="train", inputs="a", processes=1)
    write_dataset(partial(original, split="test"), 3, tmp_path / "set", name="d", split="test", inputs="b", processes=1)
    assert run("filter", tmp_path / "set", "--near-duplicates", "4", "--out", tmp_path / "out") == 0
    assert "near-duplicates: removed 1 sample\n" in capsys.readouterr().out
    assert set(records(tmp_path / "out/train")) == {"train 0", "train 2"}
    (line,) = (tmp_path / "out/removed.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "like test 00000001"


def test_samples_near_by_a_models_embeddings_are_removed_and_listed(tmp_path: Path, capsys) -> None:
    def pair(i: int) -> Sample:
        form = "JPEG" if i >= 8 else "PNG"
        images = {
            "before": photograph(i % 8, 64, form, quality=95),
            "after": photograph(i % 8 + 1, 64, form, quality=95),
        }
        return Sample(f"id {i}", "s", "pair", "train", (f"it moved {i}",), images=images)

    small_vision_model(tmp_path / "model")
    write_dataset(pair, 12, tmp_path / "set", name="d", split="train", inputs="a", processes=1)
    words = ("filter", tmp_path / "set", "--near", "0.99", "--out", tmp_path / "out")
    assert run(*words) == 2 and "--near COSINE and --model NAME belong together" in capsys.readouterr().err
    assert run(*words, "--model", tmp_path / "model") == 0
    assert "near: removed 4 samples\n" in capsys.readouterr().out
    assert set(records(tmp_path / "out/train")) == {f"id {i}" for i in range(8)}
    removed = [json.loads(line) for line in (tmp_path / "out/removed.jsonl").read_text().splitlines()]
    assert [(line["id"], line["reason"]) for line in removed] == [
        (f"id {i}", f"like train {i - 8:08d}") for i in range(8, 12)
    ]


def test_samples_near_by_cosine_are_those_of_comparing_each_with_each() -> None:
    random = np.random.default_rng(1)
    vectors = random.normal(size=(90, 2, 5)) + 0.9
    samples = list((vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32))
    samples[7] = samples[7][:1]  # a single image, with nothing to compare
    expected: dict[int, int] = {}
    for i, own in enumerate(samples):
        alike = (j for j in range(i) if j not in expected and len(own) == len(samples[j]))
        if twins := [j for j in alike if (np.sum(own * samples[j], axis=-1) >= 0.8).all()]:
            expected[i] = twins[0]
    assert 10 < len(expected) < 80
    assert all(dict(near_by_cosine(samples, 0.8, block)) == expected for block in (7, 1024))


def test_near_duplicates_are_those_of_comparing_each_with_each() -> None:
    random = np.random.default_rng(0)
    hashes: list[tuple[int, ...]] = []
    for _ in range(150):
        if hashes and random.random() < 0.6:
            flips = [1 << int(bit) for bit in random.choice(64, random.integers(0, 8), replace=False)]
            hashes.append(tuple(value ^ sum(flips) for value in hashes[random.integers(len(hashes))]))
        else:
            hashes.append((image_hash(encoded(int(random.integers(1000)))) ^ int(random.integers(1 << 62)),))
    expected: dict[int, int] = {}
    for i, own in enumerate(hashes):
        if any(j not in expected and (own[0] ^ hashes[j][0]).bit_count() <= 4 for j in range(i)):
            expected[i] = 1
    assert {i for i, _ in near_duplicates(hashes, 4)} == set(expected)


def test_merged_sets_keep_every_sample_with_its_licence(folder: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", "t", "CC BY 4.0", train=5, test=2)
    assert run("merge", folder, other, "--out", tmp_path / "both", "--dataset-name", "both") == 0
    manifest = read_manifest(tmp_path / "both/train")
    assert (manifest.name, manifest.samples, manifest.licence) == ("both", 29, "CC0; CC BY 4.0")
    assert manifest.extra["licences"] == {"CC0": 24, "CC BY 4.0": 5} and manifest.source == "of s; of t"
    found = records(tmp_path / "both/train")
    assert set(found) == {f"s {i}" for i in range(24)} | {f"t {i}" for i in range(5)}
    assert found["t 3"]["meta"]["licence"] == "CC BY 4.0"
    assert main(["data", "check", str(tmp_path / "both"), "--processes", "1"]) == 1, (
        "the images of s and t are the same"
    )


def test_pairs_of_merged_sets_that_number_theirs_alike_are_scored_each_with_its_own_captions(
    tmp_path: Path, capsys
) -> None:
    def pair(i: int, seed: int, words: str) -> Sample:
        images = {"before": photograph(seed + i // 2), "after": photograph(seed + i // 2 + 50)}
        return Sample(f"pair {i // 2}", "s", "pair", "test", (f"{words} {i}",), images=images)

    for name, seed in (("mine", 0), ("theirs", 100)):  # two records for each pair
        made = partial(pair, seed=seed, words=name)
        write_dataset(made, 6, tmp_path / name, name=name, split="test", inputs=name, processes=1)
    assert run("merge", tmp_path / "mine", tmp_path / "theirs", "--out", tmp_path / "both") == 0
    assert "noted: renamed_id 6\n" in capsys.readouterr().out
    found = HeldOut.open(tmp_path / "both/test")
    expected = {f"pair {i}": [f"mine {2 * i}", f"mine {2 * i + 1}"] for i in range(3)}
    expected |= {f"pair {i}-2": [f"theirs {2 * i}", f"theirs {2 * i + 1}"] for i in range(3)}
    assert found.references == expected
    assert HeldOut.open(tmp_path / "both/test", 4).references == dict(list(expected.items())[:4])

    # The folder of another program's copy is refused until it is repaired.
    for name in ("mine", "theirs"):
        (tar,) = (tmp_path / name / "test").glob("*.tar")
        (tmp_path / "copy/test").mkdir(parents=True, exist_ok=True)
        shutil.copy(tar, tmp_path / "copy/test")
    with pytest.raises(UserError, match="pairs with different images have the id 'pair 0'"):
        HeldOut.open(tmp_path / "copy/test")
    assert run("repair", tmp_path / "copy", "--out", tmp_path / "clean") == 0
    assert HeldOut.open(tmp_path / "clean/test").references == expected


def test_resharding_and_subsets_keep_samples_as_they_are(folder: Path, tmp_path: Path) -> None:
    assert run("reshard", folder, "--shard-samples", "10", "--out", tmp_path / "out") == 0
    assert len(read_manifest(tmp_path / "out/train").shards) == 3
    assert records(tmp_path / "out/train") == records(folder / "train")
    assert list(records(tmp_path / "out/train")) == list(records(folder / "train"))
    assert run("subset", folder, "--count", "5", "--out", tmp_path / "few") == 0
    few = records(tmp_path / "few/train")
    assert len(few) == 5 and few.items() <= records(folder / "train").items()
    assert len(records(tmp_path / "few/test")) == 4
    assert run("subset", folder, "--count", "5", "--out", tmp_path) == 2, "would write over the data set itself"


def test_new_splits_share_no_group(folder: Path, tmp_path: Path) -> None:
    words = ("split", folder / "train", "--by", "site", "--sizes", "train=0.5,val=0.5", "--out", tmp_path / "out")
    assert run(*words) == 0
    train, val = (records(tmp_path / "out" / split) for split in ("train", "val"))
    assert len(train) == len(val) == 12 and all(record["split"] == "val" for record in val.values())
    sites = [{record["meta"]["site"] for record in split.values()} for split in (train, val)]
    assert sites[0].isdisjoint(sites[1])
    assert run("split", folder / "train", "--by", "place", "--out", tmp_path / "two") == 2
