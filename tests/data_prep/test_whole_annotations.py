"""Annotations of the layout and the size that their authors publish, and captions compared with an independent reading.

CLEVR-Change names scenes `CLEVR_default_000012.png` in its captions and `000012.png` in `type_mapping.json`; 39,803 scenes
make a pair with a change and one without. Birds-to-Words has a row for each of up to five descriptions of a pair.
"""

import csv
import json
import os
import random
from pathlib import Path

import pytest
from raw_data import encoded, put
from test_readers import convert, records

SCENES = {"train": 33830, "val": 1988, "test": 3985}
CHANGES = {"color": 7958, "material": 7963, "move": 7955, "drop": 7961, "add": 7966}
BIRDS = {"train": 2685, "val": 325, "test": 337}


def clevr_change(folder: Path, scenes: dict[str, int]) -> None:
    """Annotations and images, which are links to one small file for each kind."""
    draw, numbers = random.Random(1), list(range(sum(scenes.values())))
    names = [f"{number:06d}.png" for number in numbers]
    kinds = [kind for kind, count in CHANGES.items() for _ in range(count)]
    draw.shuffle(numbers)
    splits = {split: [numbers.pop() for _ in range(count)] for split, count in scenes.items()}
    put(folder / "splits.json", splits)
    put(
        folder / "type_mapping.json",
        {kind: [n for n, k in zip(names, kinds, strict=False) if k == kind] for kind in CHANGES},
    )
    for kind in ("change", "no_change"):
        said = {f"CLEVR_default_{n}": [f"{kind} {n} {k}" for k in range(draw.randint(5, 9))] for n in names}
        put(folder / f"{kind}_captions.json", said)
    for number, (place, word) in enumerate(
        {"images": "default", "sc_images": "semantic", "nsc_images": "nonsemantic"}.items()
    ):
        sources = [put(folder / place / f"source-{n}", encoded(9 * n + number, "PNG", 8, 8)) for n in range(2)]
        for at, name in enumerate(names):
            os.link(sources[at // 30_000], folder / place / f"CLEVR_{word}_{name}")


def birds_to_words(folder: Path, pairs: dict[str, int]) -> None:
    draw, columns = random.Random(2), ["ObservationURL", "ImgURL", "Species", "Selection"]
    header = [f"img{n}{column}" for n in (1, 2) for column in columns] + ["split", "annN", "description"]
    lines, photo, source = [header], 1000, put(folder / "img/source", encoded(1, "JPEG", 8, 8))
    for split, count in pairs.items():
        for number in range(count):
            bird = []
            for place in (1, 2):
                photo += draw.randint(1, 900)
                os.link(source, folder / f"img/{photo}.jpg")
                url = f"https://static.inaturalist.org/photos/{photo}/large.jpg?14{photo}"
                bird += [
                    f"https://www.inaturalist.org/photos/{photo}",
                    url,
                    "Turdus merula",
                    ["base", "visual"][place - 1],
                ]
            for told in range(draw.randint(3, 5)):
                lines.append([*bird, split, str(told + 1), f'animal 1 has a "{number}" beak, it\'s of {split} {told}'])
    put(folder / "birds-to-words-v1.0.tsv", "".join("\t".join(line) + "\n" for line in lines))


def same_captions(out: Path, wanted: dict[str, dict[str, list[str]]]) -> None:
    """The captions of all samples, by split and id."""
    for split, samples in wanted.items():
        assert {id: sample["captions"] for id, sample in records(out / split).items()} == samples


@pytest.mark.parametrize("part", [100, pytest.param(1, marks=pytest.mark.long)])
def test_clevr_change_as_published(tmp_path: Path, part: int, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = {split: count // part for split, count in SCENES.items()}
    clevr_change(tmp_path, scenes)
    words = ("--annotations", tmp_path, "--images", tmp_path, "--processes", "1")
    code, _, error = convert(capsys, "clevr-change", tmp_path / "out", *words)
    assert code == 0, error
    splits = json.loads((tmp_path / "splits.json").read_text())
    captions = {kind: json.loads((tmp_path / f"{kind}_captions.json").read_text()) for kind in ("change", "no_change")}
    wanted = {
        split: {
            f"{number:06d}-{kind.replace('_', '-')}": said[f"CLEVR_default_{number:06d}.png"]
            for number in numbers
            for kind, said in captions.items()
        }
        for split, numbers in splits.items()
    }
    assert {split: len(samples) for split, samples in wanted.items()} == {s: 2 * n for s, n in scenes.items()}
    same_captions(tmp_path / "out", wanted)
    assert all(
        s["meta"]["change_type"] in ("recolour", "material", "move", "remove", "add", "none")
        for s in records(tmp_path / "out/test").values()
    )


@pytest.mark.parametrize("part", [10, pytest.param(1, marks=pytest.mark.long)])
def test_birds_to_words_as_published(tmp_path: Path, part: int, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = {split: count // part for split, count in BIRDS.items()}
    birds_to_words(tmp_path, pairs)
    words = ("--annotations", tmp_path, "--images", tmp_path / "img", "--processes", "1")
    code, _, error = convert(capsys, "birds-to-words", tmp_path / "out", *words)
    assert code == 0, error
    wanted: dict[str, dict[str, list[str]]] = {split: {} for split in pairs}
    with (tmp_path / "birds-to-words-v1.0.tsv").open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            id = "-".join(row[f"img{n}ImgURL"].split("/")[4] for n in (1, 2))
            wanted[row["split"]].setdefault(id, []).append(row["description"])
    assert {split: len(samples) for split, samples in wanted.items()} == pairs
    same_captions(tmp_path / "out", wanted)
