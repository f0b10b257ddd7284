"""data_prep.readers: each data set in its own layout, with its own quirks, by way of the command."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from raw_data import encoded, put

from data_prep.readers import BUILT_IN, reader
from data_prep.readers.files import json_array
from onediff.cli import main
from onediff.data.index import read_index
from onediff.data.manifest import read_manifest
from onediff.errors import UserError


def convert(capsys: pytest.CaptureFixture[str], name: str, out: Path, *words: object) -> tuple[int, str, str]:
    """Exit code and what the user sees."""
    capsys.readouterr()
    code = main(["data", "convert", name, "--out", str(out), "--processes", "1", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """`id → JSON record`, with the sample's suffixes as `members`."""
    manifest, found = read_manifest(folder), {}
    for shard in manifest.shards:
        with tarfile.open(manifest.path(shard)) as tar:
            for span in read_index(manifest.path(shard)):
                record = json.load(tar.extractfile(f"{span.key}.json"))
                found[record["id"]] = {**record, "members": {member.suffix for member in span.members}}
    return found


def test_every_built_in_reader_says_what_it_expects(capsys: pytest.CaptureFixture[str]) -> None:
    for name in BUILT_IN:
        assert reader(name).name == name
        assert main(["data", "convert", name, "--layout"]) == 0
        assert reader(name).layout in capsys.readouterr().out


def test_an_unknown_reader_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="no reader 'spot-the-dif'; did you mean 'spot-the-diff'"):
        reader("spot-the-dif")


def test_a_reader_of_another_package_is_found_by_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(
        tmp_path / "site/other_reader.py",
        "from data_prep.readers import Reader, Row\n"
        "def rows(inputs):\n"
        "    for file in sorted(inputs.images.glob('*_a.png')):\n"
        "        yield Row(file.name, file.stem[:-2], 'train', {'before': file.name, 'after': file.name[:-5] + 'b.png'},\n"
        "                  ('it changed',))\n"
        "READER = Reader('other', 'pairs by name', '', '', 'DIR/<id>_a.png, <id>_b.png', rows)\n",
    )
    put(tmp_path / "site/other-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    put(tmp_path / "site/other-1.0.dist-info/entry_points.txt", "[onediff.readers]\nother = other_reader:READER\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in ("x_a.png", "x_b.png"):
        put(tmp_path / "images" / name, encoded(len(name)))
    code, said, _ = convert(capsys, "other", tmp_path / "out", "--images", tmp_path / "images")
    assert code == 0
    assert said.splitlines()[2].split()[:4] == ["train", "1", "1", "0"]
    assert records(tmp_path / "out/train")["x"]["captions"] == ["it changed"]


def test_spot_the_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [
        {"img_id": "7", "sentences": ["the car is gone", "  a man  appeared "]},
        {"img_id": "8", "sentences": [""]},
        {"img_id": "7", "sentences": ["the sky is darker", "\t"]},
    ]
    put(tmp_path / "ann/train.json", train)
    put(tmp_path / "ann/test.json", [{"img_id": "9", "sentences": ["no difference"]}])
    for name in ("7", "7_2", "8", "8_2", "9", "9_2"):
        put(tmp_path / f"img/{name}.png", encoded(sum(map(ord, name))))
    code, said, _ = convert(
        capsys, "spot-the-diff", tmp_path / "out", "--annotations", tmp_path / "ann", "--images", tmp_path / "img"
    )
    assert code == 0
    lines = said.splitlines()
    assert lines[2].split()[:4] == ["train", "2", "1", "1"]
    assert lines[3].split()[:4] == ["test", "1", "1", "0"]
    assert "skipped: no_caption 1" in lines
    assert "noted: merged_row 1" in lines
    assert "  no_caption: train.json row 2: the caption is empty" in lines
    sample = records(tmp_path / "out/train")["7"]
    assert sample["captions"] == ["the car is gone", "a man appeared", "the sky is darker"]
    assert sample["members"] == {"before.png", "after.png", "json"}
    assert sample["meta"]["notes"] == ["blank_caption", "merged_row"]


def test_an_annotation_that_leaves_the_image_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "notes/train.json", [{"img_id": "../secret", "sentences": ["it left"]}])
    put(tmp_path / "secret.png", encoded(1))
    put(tmp_path / "secret_2.png", encoded(2))
    (tmp_path / "images").mkdir()
    words = ("--annotations", tmp_path / "notes", "--images", tmp_path / "images")
    code, _, error = convert(capsys, "spot-the-diff", tmp_path / "out", *words)
    assert code == 2
    assert "train.json row 1: the path '../secret.png' leaves the image folder" in error
    assert not list((tmp_path / "out").iterdir())


def test_real_spot_the_diff_counts(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: `jq length` of each file is 150; `jq '[.[] | select(all(.sentences[]; test("^ *$")))] | length'`: 2, 1, 0."""
    annotations = real_data / "spot-the-diff/annotations"
    rows = {split: json.loads((annotations / f"{split}.json").read_text()) for split in ("train", "val", "test")}
    for row in (row for split in rows.values() for row in split):
        for name in (f"{row['img_id']}.png", f"{row['img_id']}_2.png"):
            put(tmp_path / "img" / name, encoded(len(name), "PNG", 8, 8))
    code, said, _ = convert(
        capsys, "spot-the-diff", tmp_path / "out", "--annotations", annotations, "--images", tmp_path / "img"
    )
    assert code == 0
    table = [line.split()[:4] for line in said.splitlines()[2:5]]
    assert table == [["train", "150", "148", "2"], ["test", "150", "150", "0"], ["val", "150", "149", "1"]]
    for split, listed in rows.items():
        found = records(tmp_path / "out" / split)
        for row in listed:
            kept = [" ".join(text.split()) for text in row["sentences"] if text.strip()]
            assert found.get(row["img_id"], {}).get("captions", []) == kept


def test_real_image_editing_request_counts(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: `jq length` of each file is 100, and no sentence is blank; four pairs of valid.json are in test.json too."""
    annotations = real_data / "image-editing-request"
    for split in ("train", "valid", "test"):
        for number, row in enumerate(json.loads((annotations / f"{split}.json").read_text())):
            put(tmp_path / "img" / row["img0"], encoded(number, "JPEG", 8, 8))
            put(tmp_path / "img" / row["img1"], encoded(number + 500, "JPEG", 8, 8))
    code, said, _ = convert(
        capsys, "image-editing-request", tmp_path / "out", "--annotations", annotations, "--images", tmp_path / "img"
    )
    assert code == 0
    table = [line.split()[:4] for line in said.splitlines()[2:5]]
    assert table == [["train", "100", "100", "0"], ["test", "100", "100", "0"], ["val", "100", "100", "0"]]
    assert "noted: in_two_splits 4" in said.splitlines()
    assert records(tmp_path / "out/train")["Zhopped_11"]["captions"] == ["Making dark color"]


def test_image_editing_request_finds_names_in_other_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "ann/valid.json", [{"img0": "a.jpg", "img1": "b.jpg", "sents": ["brighter"], "uid": "u_1"}])
    put(tmp_path / "img/a.JPG", encoded(1, "JPEG"))
    put(tmp_path / "img/b.jpg", encoded(2, "PNG"))
    code, said, _ = convert(
        capsys, "image-editing-request", tmp_path / "o", "--annotations", tmp_path / "ann", "--images", tmp_path / "img"
    )
    assert code == 0
    assert {"noted: other_name 1", "noted: wrong_suffix 1"} <= set(said.splitlines())
    # A PNG named .jpg is stored as what it is.
    assert records(tmp_path / "o/val")["u_1"]["members"] == {"before.jpg", "after.png", "json"}


def test_clevr_change(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ann = tmp_path / "ann"
    for name in ("splits.json", "type_mapping.json"):
        put(ann / name, (real_data / "clevr-change" / name).read_bytes())
    split_of = {n: split for split, numbers in json.loads((ann / "splits.json").read_text()).items() for n in numbers}
    some = [f"{number:06d}.png" for split in ("train", "test") for number in split_of if split_of[number] == split][:3]
    put(ann / "change_captions.json", {name: ["the small ball moved", "a ball moved"] for name in some})
    put(ann / "no_change_captions.json", {name: ["nothing changed"] for name in some})
    real = (real_data / "clevr-change/CLEVR_new_000000.png").read_bytes()
    for number, name in enumerate(some):
        put(tmp_path / f"img/images/CLEVR_default_{name}", real)
        put(tmp_path / f"img/sc_images/CLEVR_semantic_{name}", encoded(number))
        put(tmp_path / f"img/nsc_images/CLEVR_nonsemantic_{name}", encoded(number + 9))
    code, said, error = convert(
        capsys, "clevr-change", tmp_path / "out", "--annotations", ann, "--images", tmp_path / "img"
    )
    assert code == 0, error
    assert "noted: alpha 6" in said.splitlines()  # The real images are RGBA.
    found = records(tmp_path / "out/train")
    assert len(found) == 6
    number = some[0].removesuffix(".png")
    assert found[f"{number}-change"]["captions"] == ["the small ball moved", "a ball moved"]
    assert found[f"{number}-no-change"]["meta"]["change_type"] == "none"
    put(ann / "change_captions.json", {"999999.png": ["x"]})
    code, _, error = convert(
        capsys, "clevr-change", tmp_path / "o2", "--annotations", ann, "--images", tmp_path / "img"
    )
    assert (code, error) == (
        2,
        "onediff: error: change_captions.json '999999.png': splits.json has no such image\n",
    )


def test_birds_to_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = "img1ObservationURL img1ImgURL img1Species img1Selection img2ObservationURL img2ImgURL img2Species"
    columns += " img2Selection split annN description"
    urls = [f"https://static.inaturalist.org/photos/{n}/large.jpg?15" for n in (4150, 38, 77)]
    rows = [
        ["o1", urls[0], "Finch", "", "o2", urls[1], "Robin", "", "train", "1", 'animal1 is "grey", animal2 is red'],
        ["o1", urls[0], "Finch", "", "o2", urls[1], "Robin", "", "train", "2", "the second one is smaller"],
        ["o3", urls[2], "Crow", "", "o2", urls[1], "Robin", "", "val", "1", "the first one is black"],
    ]
    put(tmp_path / "b.tsv", "\n".join("\t".join(row) for row in [columns.split(), *rows]) + "\n")
    for number, name in enumerate(("4150.jpeg", "38.jpg", "77.PNG")):
        put(tmp_path / "img" / name, encoded(number, "PNG" if name.endswith("PNG") else "JPEG"))
    code, said, error = convert(
        capsys, "birds-to-words", tmp_path / "out", "--annotations", tmp_path / "b.tsv", "--images", tmp_path / "img"
    )
    assert code == 0, error
    assert said.splitlines()[2].split()[:4] == ["train", "1", "1", "0"]
    sample = records(tmp_path / "out/train")["4150-38"]
    assert sample["captions"] == ['animal1 is "grey", animal2 is red', "the second one is smaller"]
    assert sample["meta"]["species"] == ["Finch", "Robin"]


def test_real_instruct_pix2pix(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: `wc -l 0000014/metadata.jsonl` is 2."""
    images = real_data / "instruct-pix2pix"
    code, said, error = convert(capsys, "instruct-pix2pix", tmp_path / "out", "--images", images)
    assert code == 0, error
    assert said.splitlines()[2].split()[:4] == ["train", "2", "2", "0"]
    sample = records(tmp_path / "out/train")["0000014-10483310"]
    assert sample["captions"] == ["make it a lion"]
    assert sample["meta"]["caption_after"] == "animals jungle lion  branch hd wallpaper"
    manifest = read_manifest(tmp_path / "out/train")
    with tarfile.open(manifest.path(manifest.shards[0])) as tar:
        stored = {tar.extractfile(name).read() for name in tar.getnames()}
    assert (images / "0000014/10483310_0.jpg").read_bytes() in stored  # Byte for byte.


def test_magicbrush(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [
        {"input": "12-input.png", "mask": "12-mask1.png", "output": "12-output1.png", "instruction": "add a dog"},
        {"input": "12-output1.png", "mask": "12-mask2.png", "output": "12-output2.png", "instruction": "make it red"},
    ]
    put(tmp_path / "mb/train/edit_turns.json", turns)
    put(tmp_path / "mb/dev/edit_turns.json", [{**turns[0], "input": "13-input.png", "output": "13-output1.png"}])
    for name in ("12-input", "12-output1", "12-output2"):
        put(tmp_path / f"mb/train/images/12/{name}.png", encoded(len(name)))
    for name in ("13-input", "13-output1"):
        put(tmp_path / f"mb/dev/images/13/{name}.png", encoded(len(name) + 3))
    code, _, error = convert(capsys, "magicbrush", tmp_path / "out", "--annotations", tmp_path / "mb")
    assert code == 0, error
    assert records(tmp_path / "out/train")["12-output2"]["captions"] == ["make it red"]
    assert list(records(tmp_path / "out/val")) == ["13-output1"]


def test_levir_cc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentences = [{"raw": " a road is built .", "tokens": []}, {"raw": " houses appear .", "tokens": []}]
    image = {"filepath": "train", "filename": "train_000001.png", "sentences": sentences, "split": "train"}
    put(tmp_path / "LevirCCcaptions.json", {"images": [{**image, "changeflag": 1}]})
    for folder in "AB":
        put(tmp_path / f"images/train/{folder}/train_000001.png", encoded(ord(folder)))
    code, _, error = convert(
        capsys, "levir-cc", tmp_path / "out", "--annotations", tmp_path, "--images", tmp_path / "images"
    )
    assert code == 0, error
    sample = records(tmp_path / "out/train")["train_000001"]
    assert sample["captions"] == ["a road is built .", "houses appear ."]
    assert sample["meta"]["change_type"] == "change"


NEWER = {
    "second-cc": (
        {
            "SECOND-CC-AUG.json": {
                "info": [],
                "images": [
                    {
                        "filename": "00001_0_0.png",
                        "split": "test",
                        "changeflag": 1,
                        "sentences": [{"raw": "houses are built"}, {"raw": "trees are gone"}],
                    }
                ],
            }
        },
        ("test/rgb/A/00001_0_0.png", "test/rgb/B/00001_0_0.png"),
        ("test", "00001_0_0", ["houses are built", "trees are gone"]),
    ),
    "aurora": (
        {
            "data/ag/train.json": [
                {
                    "instruction": "Leave the door",
                    "input": "data/ag/images/1K0SU.mp4_4_left.png",
                    "output": "data/ag/images/1K0SU.mp4_4_right.png",
                }
            ]
        },
        ("data/ag/images/1K0SU.mp4_4_left.png", "data/ag/images/1K0SU.mp4_4_right.png"),
        ("train", "data/ag/images-1K0SU.mp4_4_left-1K0SU.mp4_4_right", ["Leave the door"]),
    ),
    "rscc": (
        {
            "captions.jsonl": {
                "pre_image": "/home/datasets/xbd/images-w512-h512/a/1_pre.png",
                "post_image": "/home/datasets/xbd/images-w512-h512/a/1_post.png",
                "change_caption": "the roof is gone",
            }
        },
        ("xbd/images-w512-h512/a/1_pre.png", "xbd/images-w512-h512/a/1_post.png"),
        ("train", "xbd/images-w512-h512/a-1_pre-1_post", ["the roof is gone"]),
    ),
    "img-diff": (
        {
            "img_diff_object_replacement.json": [
                {
                    "path": "filtered/7",
                    "bbox": "[1, 2, 3, 4]",
                    "conversations": [
                        {"from": "human", "value": "<image>\n<image>\nWhat differs in the box?"},
                        {"from": "gpt", "value": "a cat is a dog"},
                    ],
                }
            ]
        },
        ("filtered/7_0.jpg", "filtered/7_1.jpg"),
        ("train", "filtered/7-1", ["a cat is a dog"]),
    ),
    "medical-diff-vqa": (
        {
            "mimic_all.csv": ",subject_id,study_id,dicom_id,view\n0,10000032,50414267,02aa,frontal\n"
            "1,10000032,53189527,2a2f,frontal\n",
            "mimic_pair_questions.csv": "study_id,subject_id,ref_id,question_type,question,answer,split\n"
            "53189527,10000032,50414267,difference,what has changed?,the main image has edema,val\n"
            "53189527,10000032,50414267,view,which view?,ap view,val\n"
            "1,10000032,50414267,difference,what has changed?,nothing,val\n",
        },
        ("files/p10/p10000032/s50414267/02aa.jpg", "files/p10/p10000032/s53189527/2a2f.jpg"),
        ("val", "53189527-50414267", ["the main image has edema"]),
    ),
}
"""By reader: its annotations, its two images, and the split, id and captions of the one pair that can be used."""


@pytest.mark.parametrize("name", NEWER)
def test_what_the_field_has_published_since(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, images, (split, id, captions) = NEWER[name]
    for path, content in annotations.items():
        put(tmp_path / "raw" / path, content)
    for number, path in enumerate(images):
        put(tmp_path / "raw" / path, encoded(number, "JPEG" if path.endswith("jpg") else "PNG"))
    code, said, error = convert(capsys, name, tmp_path / "out", tmp_path / "raw")
    assert code == 0, error
    found = records(tmp_path / "out" / split)
    assert {id: record["captions"] for id, record in found.items()} == {id: captions}
    assert "before.jpg" in found[id]["members"] or "before.png" in found[id]["members"]
    assert ("incomplete: mimic_pair_questions.csv row 3" in said) == (name == "medical-diff-vqa")


def test_vdiff_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    choices = ["the cup is gone", "the cup is red", "the cup is larger", "there is no difference"]
    images = [{"bytes": encoded(number), "path": None} for number in range(6)]
    truths = ["the cup is red", "(C)", "the cup is blue"]
    columns = {
        **{"image_1": images[:3], "image_2": images[3:], "choices": [choices] * 3, "ground truth": truths},
        **{
            "change category": ["texture", "noise/resolution", "texture"],
            "source": ["a", "b", "c"],
            "index": [0, 1, 2],
        },
    }
    (tmp_path / "raw/data").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "raw/data/train-00000-of-00001.parquet")
    code, said, error = convert(capsys, "vdiff-bench", tmp_path / "out", tmp_path / "raw")
    assert code == 0, error
    found = records(tmp_path / "out/test")
    assert {id: record["captions"] for id, record in found.items()} == {
        "0": ["the cup is red"],
        "1": ["the cup is larger"],
    }
    assert found["0"]["meta"]["choices"] == choices and found["1"]["meta"]["change_type"] == "noise/resolution"
    assert "row 3: none of the choices is marked as true" in said + error


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]


def test_llava_558k_from_a_zip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import zipfile

    put(
        tmp_path / "blip_laion_cc_sbu_558k.json",
        [
            {"id": "1", "image": "00001/1.jpg", "conversations": turns("Describe.\n<image>", "a red barn")},
            {"id": "2", "image": "00001/2.jpg", "conversations": turns("<image>\nDescribe.", "a dog")},
        ],
    )
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("00001/1.jpg", encoded(1, "JPEG"))
    code, said, error = convert(
        capsys, "llava-558k", tmp_path / "out", "--annotations", tmp_path, "--images", tmp_path / "images.zip"
    )
    assert code == 0, error
    assert "skipped: missing_image 1" in said.splitlines()
    sample = records(tmp_path / "out/train")["1"]
    assert (sample["captions"], sample["task"]) == (["a red barn"], "single")
    assert sample["meta"]["asked"] == "Describe."
    assert sample["members"] == {"jpg", "json"}


def test_llava_665k_has_many_turns_text_only_rows_and_repeated_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(
        tmp_path / "llava_v1_5_mix665k.json",
        [
            {
                "id": "a",
                "image": "coco/train2017/1.jpg",
                "conversations": turns("<image>\nWhat?", "A cat.", "Why?", "So."),
            },
            {"id": "b", "conversations": turns("Hello", "Hi!")},
            {"id": "a", "image": "coco/train2017/1.jpg", "conversations": turns("<image>\nWhere?", "There.")},
            {"id": "c", "image": "ocr_vqa/images/9.jpg", "conversations": turns("<image>\nTitle?", "None.")},
            {"id": "d", "conversations": turns("nobody answers")},
            {"id": "e", "conversations": [{"from": "gpt", "value": "First."}, *turns("And?", "Then.")]},
        ],
    )
    put(tmp_path / "img/coco/train2017/1.jpg", encoded(1, "JPEG"))
    put(tmp_path / "img/ocr_vqa/images/9.gif", encoded(2, "GIF"))
    code, said, error = convert(
        capsys, "llava-665k", tmp_path / "out", "--annotations", tmp_path, "--images", tmp_path / "img"
    )
    assert code == 0, error
    assert said.splitlines()[2].split()[:4] == ["train", "6", "5", "1"]
    assert "  no_caption: the conversation has no answer" in said
    found = records(tmp_path / "out/train")
    assert found["b"]["members"] == {"json"}
    assert found["c"]["members"] == {"png", "json"}
    assert [turn["from"] for turn in found["e"]["conversations"]] == ["human", "gpt"]


def test_a_long_array_is_read_row_by_row(tmp_path: Path) -> None:
    listed = [{"n": n, "text": "é" * (2_000_000 if n == 5 else n)} for n in range(2000)]
    file = put(tmp_path / "a.json", listed)
    assert list(json_array(file)) == listed
    file.write_text(file.read_text()[:-40])
    with pytest.raises(UserError, match=r"a\.json row 2000: not JSON"):
        list(json_array(file))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a": 1}', "expected a JSON array of rows"),
        ('[{"img_id": "1", "sentences": ["a"]}, 7]', "row 2: expected an object, not int"),
        ('[{"img_id": "1"}]', "train.json row 1: no field 'sentences', only 'img_id'"),
        ('[{"img_id": "1", "sentences": [3]}]', "train.json row 1: field 'sentences' must be a list of sentences"),
        ("[]", "there are no rows"),
    ],
)
def test_annotations_of_another_form_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: str
) -> None:
    put(tmp_path / "train.json", text)
    code, _, error = convert(capsys, "spot-the-diff", tmp_path / "out", "--annotations", tmp_path)
    assert code == 2
    assert line in error
    assert error.count("\n") == 1
