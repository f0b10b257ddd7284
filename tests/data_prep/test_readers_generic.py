"""data_prep.readers.generic and the quirks of images and rows: the line that the user sees for each."""

import csv
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_data import PAIR, encoded, numbered_images, pixels, put, table, tar_with
from test_readers import convert, records

from data_prep.images import Encoding, plain_size, prepare
from data_prep.splits import check_split, split_name
from onediff.data.sample import BadSample
from onediff.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return numbered_images(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_kind_of_table_gives_the_same_samples(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"before": "0.png", "after": "1.png", "caption": "a car, red, is gone", "split": "train"},
        {"before": "2.jpg", "after": "3.jpg", "caption": "two men left", "split": "validation"},
        {"before": "0.png", "after": "1.png", "caption": "the car left", "split": "train"},
    ]
    path = folder / f"pairs.{kind}"
    if kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        put(path, "\n".join(map(json.dumps, rows)))
    elif kind == "json":
        put(path, rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    code, said, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 0, error
    assert [line.split()[:4] for line in said.splitlines()[2:4]] == [["train", "1", "1", "0"], ["val", "1", "1", "0"]]
    assert records(folder / "out/train")["0-1"]["captions"] == ["a car, red, is gone", "the car left"]
    assert records(folder / "out/val")["2-3"]["members"] == {"before.jpg", "after.jpg", "json"}


def test_captions_in_several_columns_or_as_a_list_and_other_columns_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "left": "0.png",
            "after": "1.png",
            "caption_1": "one",
            "caption_2": "two",
            "captions": '["x", "y"]',
            "city": "Ulm",
        },
        {
            "left": "2.png",
            "after": "3.png",
            "caption_1": "\ufeff[sic]\x00 o\u0308ne\x1b",
            "caption_2": "",
            "captions": "",
            "city": "",
        },
    ]
    path = table(folder / "t.csv", rows)
    code, said, error = convert(capsys, "generic", folder / "out", "--table", path, "--columns", "before=left")
    assert code == 0, error
    assert "noted: blank_caption 2" in said.splitlines()
    found = records(folder / "out/train")
    assert found["0-1"]["captions"] == ["x", "y", "one", "two"]
    assert found["0-1"]["meta"]["city"] == "Ulm"
    assert found["2-3"]["captions"] == ["[sic] o\u0308ne"]


def test_images_inside_a_parquet_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "source_img": {"bytes": encoded(n), "path": None},
            "target_img": {"bytes": encoded(n + 1, "JPEG"), "path": None},
            "caption": ["brighter", "lighter"],
            "id": str(n),
        }
        for n in range(3)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    code, _, error = convert(capsys, "generic", tmp_path / "out", "--table", tmp_path / "t.parquet")
    assert code == 0, error
    found = records(tmp_path / "out/train")
    assert {id: (sample["captions"], sample["members"]) for id, sample in found.items()} == {
        str(n): (["brighter", "lighter"], {"before.png", "after.jpg", "json"}) for n in range(3)
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train"]


def test_single_images_and_a_hold_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image": f"{n}.{kind}", "caption": f"image {n}"} for n in range(6) for kind in ("png", "jpg")]
    code, _, error = convert(
        capsys, "generic", folder / "out", "--table", table(folder / "t.csv", rows), "--hold-out", "0.4"
    )
    assert code == 0, error
    train, test = records(folder / "out/train"), records(folder / "out/test")
    assert len(train) > len(test) > 0
    assert next(iter(train.values()))["task"] == "single"
    assert all(sample["split"] == "test" for sample in test.values())


def broken_png() -> bytes:
    data = bytearray(encoded(3, "PNG", 90, 90))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


SKIPPED = {
    "an empty caption": ({**PAIR, "after": "2.png", "caption": "   "}, "no_caption: t.csv row 2: the caption is empty"),
    "no image named": ({**PAIR, "after": ""}, "missing_image: t.csv row 2: there is no after image"),
    "a missing file": ({**PAIR, "after": "9.gif"}, "missing_image: t.csv row 2: no file '9.gif' in"),
    "a link that leads nowhere": (
        {**PAIR, "after": "link.png"},
        "missing_image: t.csv row 2: a link to a missing file: 'link.png' in",
    ),
    "a missing archive": ({**PAIR, "after": "9.tar#1.png"}, "missing_image: t.csv row 2: no archive '9.tar' in"),
    "a missing member": ({**PAIR, "after": "a.tar#9.png"}, "missing_image: t.csv row 2: no member '9.png' in"),
    "a folder": ({**PAIR, "after": "sub"}, "missing_image: t.csv row 2: 'sub' is not a plain file"),
    "not an image": ({**PAIR, "after": "t.csv"}, "not_an_image: t.csv row 2: t.csv: not a JPEG, PNG, WebP"),
    "cut short": ({**PAIR, "after": "cut.jpg"}, "bad_image: t.csv row 2: cut.jpg: the image is corrupt: "),
    "an empty file": ({**PAIR, "after": "empty.jpg"}, "not_an_image: t.csv row 2: empty.jpg"),
    "a decompression bomb": ({**PAIR, "after": "bomb.png"}, "too_large: t.csv row 2: bomb.png: "),
    "a JPEG of four gigapixels": (
        {**PAIR, "after": "bomb.jpg"},
        "too_large: t.csv row 2: bomb.jpg: the image claims",
    ),
}


@pytest.mark.parametrize("fault", SKIPPED)
def test_a_row_that_cannot_be_used_is_counted_and_named_or_stops_a_strict_conversion(
    folder: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row, line = SKIPPED[fault]
    put(folder / "cut.jpg", encoded(1, "JPEG", 200, 200)[:900])
    put(folder / "empty.jpg", b"")
    put(folder / "bomb.png", bomb(60_000))
    frame = (folder / "1.jpg").read_bytes()
    at = frame.index(b"\xff\xc0") + 5  # height and width of the frame
    put(folder / "bomb.jpg", frame[:at] + b"\xff" * 4 + frame[at + 4 :])
    (folder / "sub").mkdir()
    (folder / "link.png").symlink_to("nowhere.png")
    tar_with(folder / "a.tar", "1.png")
    path = table(folder / "t.csv", [PAIR, row])
    code, said, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 0, error
    assert said.splitlines()[2].split()[:4] == ["train", "2", "1", "1"]
    assert line in said
    assert f"skipped: {line.split(':')[0]} 1" in said.splitlines()
    code, _, error = convert(capsys, "generic", folder / "strict", "--table", path, "--strict")
    assert code == 2
    assert error.startswith("onediff: error: " + line.split(": ", 1)[1])
    assert "leave out --strict" in error
    assert error.count("\n") == 1
    code, _, error = convert(capsys, "generic", folder / "alone", "--table", table(folder / "t.csv", [PAIR | row]))
    assert code == 2
    assert "none of 1 samples can be used; the first: " in error


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that says it has `side`² pixels."""
    import struct

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99_999))) + chunk(b"IEND", b"")
    )


REFUSED = {
    "a path upwards": ({**PAIR, "after": "../1.png"}, "t.csv row 1: the path '../1.png' leaves the image folder"),
    "an absolute path": (
        {**PAIR, "after": "/etc/passwd"},
        "t.csv row 1: '/etc/passwd' is not below the image folder",
    ),
    "a Windows path": ({**PAIR, "after": "C:\\x.png"}, "is a Windows path with a drive letter"),
    "a URL": ({**PAIR, "after": "https://x.org/1.png"}, "t.csv row 1: 'https://x.org/1.png' is a URL; add --fetch x"),
    "a URL of a file": ({**PAIR, "after": "file:///etc/passwd"}, "is a URL; only http and https are fetched: name the"),
    "a URL of an archive": (
        {**PAIR, "after": "https://x.org/1.tar#1.png"},
        "is a URL; fetch the archive first and name",
    ),
    "an archive upwards": ({**PAIR, "after": "../1.tar#1.png"}, "the path '../1.tar' leaves the image folder"),
    "a member upwards": ({**PAIR, "after": "1.tar#../1.png"}, "t.csv row 1: the path '../1.png' leaves the image"),
    "a strange split": ({**PAIR, "split": "../x"}, "t.csv row 1: split '../x' must be a plain folder name"),
    "no caption column": ({"before": "0.png", "after": "1.png"}, "no column 'caption'; it has before, after"),
    "no after column": ({"before": "0.png", "caption": "x"}, "no column 'after'; it has before, caption"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_no_row_can_mend_stops_the_conversion(
    folder: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row, line = REFUSED[fault]
    code, _, error = convert(capsys, "generic", folder / "out", "--table", table(folder / "t.csv", [row]))
    assert code == 2
    assert line in error
    assert error.count("\n") == 1
    assert not list((folder / "out").iterdir())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("before,after,caption\n0.png,1.png,a car, red\n", "t.csv row 1: 4 cells, but the header has 3; put text"),
        ("before,after,caption\n", "there are no rows"),
        ("", "there are no rows"),
        ('before,after,caption\n0.png,1.png,"open\n', "t.csv row 1: a double quote opens a cell and is never closed"),
    ],
)
def test_a_broken_csv_is_one_clear_line(folder: Path, text: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = convert(capsys, "generic", folder / "out", "--table", put(folder / "t.csv", text))
    assert code == 2
    assert line in error


def test_the_same_pair_in_train_and_test_is_refused_unless_allowed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = {"before": "1.png", "after": "0.png", "caption": "moved back", "split": "test"}
    path = table(folder / "t.csv", [{**PAIR, "split": "train"}, turned])
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 2
    assert "t.csv row 2: the same images (1.png, 0.png) in the splits train and test; fix the rows or" in error
    code, said, error = convert(capsys, "generic", folder / "out", "--table", path, "--allow-leakage")
    assert code == 0, error
    assert "noted: in_two_splits 1" in said.splitlines()


def test_one_image_in_pairs_of_train_and_of_another_split_is_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {**PAIR, "split": "train"},
        {"before": "2.png", "after": "1.png", "caption": "it moved again", "split": "test"},
        {"before": "2.png", "after": "3.png", "caption": "it is red", "split": "val"},
    ]
    code, said, error = convert(capsys, "generic", folder / "out", "--table", table(folder / "t.csv", rows))
    assert code == 0, error
    assert "noted: image_in_two_splits 1" in said.splitlines()


def test_a_misspelt_split_is_refused_and_an_own_one_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"before": "2.png", "after": "3.png", "caption": "it is red", "split": "hard"}
    path = table(folder / "t.csv", [{**PAIR, "split": "trian"}, other])
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 2
    assert "t.csv row 1: split 'trian': did you mean 'train'? If not, add --splits trian,…" in error
    code, said, error = convert(capsys, "generic", folder / "out", "--table", path, "--splits", "trian,hard")
    assert code == 0, error
    assert (
        "noted: split hard is not one of train, val, test, so commands use it only if you name it" in said.splitlines()
    )
    for name in ("testA", "trainval", "val2", "valid2", "train_hard", "dev", "Validation"):
        check_split(split_name(name), "row 1")
    for name in ("tets", "tranin", "validaton", "trainig", "tset"):
        with pytest.raises(UserError, match="did you mean"):
            check_split(split_name(name), "row 1")


def test_a_missing_table_is_named_as_the_user_named_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = convert(capsys, "generic", folder / "out", "--table", folder / "no.csv")
    assert code == 2
    assert error.strip().endswith("no.csv: no such file or folder (--table)")


def test_images_of_equal_content_are_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(folder / "copy.png", (folder / "0.png").read_bytes())
    rows = [PAIR, {**PAIR, "after": "copy.png"}, {"before": "2.png", "after": "3.jpg", "caption": "sizes"}]
    put(folder / "3.jpg", encoded(3, "JPEG", 60, 20))
    code, said, error = convert(capsys, "generic", folder / "out", "--table", table(folder / "t.csv", rows))
    assert code == 0, error
    lines = said.splitlines()
    assert "noted: identical_pair 1" in lines
    assert "noted: sizes_differ 1" in lines
    assert "noted: 2 images have the content of an earlier one in the same split" in lines


def test_grey_images_are_kept_and_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = {"0.png": saved(image("L"), "PNG"), "1.jpg": saved(image("L"), "JPEG")}
    for name, data in grey.items():
        put(folder / name, data)
    path = table(folder / "t.csv", [{"before": "0.png", "after": "1.jpg", "caption": "x"}])
    code, said, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 0, error
    assert "noted: grey 2" in said.splitlines()
    assert [prepare(data, Encoding())[0] for data in grey.values()] == list(grey.values())


def image(mode: str) -> Image.Image:
    return Image.fromarray(pixels(4)).convert(mode)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image("RGB"), "JPEG", exif=exif, quality=95)


QUIRKS = {
    "exif_rotation": (rotated(), "jpg", (30, 40)),
    "alpha": (saved(image("RGBA"), "PNG"), "png", (40, 30)),
    "palette": (saved(image("P"), "PNG"), "png", (40, 30)),
    "cmyk": (saved(image("CMYK"), "JPEG"), "jpg", (40, 30)),
    "16_bit": (saved(Image.fromarray(pixels(4)[..., 0].astype(np.uint16) << 8), "PNG"), "png", (40, 30)),
    "gif": (saved(image("RGB"), "GIF"), "png", (40, 30)),
    "animation": (saved(image("RGB"), "GIF", save_all=True, append_images=[image("L")]), "png", (40, 30)),
    "bmp": (saved(image("RGB"), "BMP"), "png", (40, 30)),
    "tiff": (saved(image("RGB"), "TIFF"), "png", (40, 30)),
    "mode_1": (saved(image("1"), "PNG"), "png", (40, 30)),
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_images_that_are_not_plain_are_made_plain_and_noted(
    folder: Path, quirk: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, form, size = QUIRKS[quirk]
    put(folder / "odd.dat", data)
    path = table(folder / "t.csv", [{**PAIR, "after": "odd.dat"}])
    code, said, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 0, error
    assert f"noted: {quirk} 1" in said.splitlines()
    sample = records(folder / "out/train")["0-odd"]
    assert sample["members"] == {"before.png", f"after.{form}", "json"}
    assert sample["meta"]["size"]["after"] == list(size)
    stored = Image.open(io.BytesIO(prepare(data, Encoding())[0]))
    assert stored.mode in ("RGB", "L")
    wanted = np.asarray(Image.fromarray(pixels(4)).convert("RGB"), dtype=float)
    got = np.asarray(stored.convert("RGB"), dtype=float)
    if quirk in ("alpha", "bmp", "tiff"):
        assert (got == wanted).all()
    if quirk == "exif_rotation":
        assert np.abs(got - np.rot90(wanted, -1)).mean() < 20
    if quirk == "16_bit":
        assert (np.asarray(stored) == pixels(4)[..., 0]).all()


def test_plain_images_keep_their_bytes_and_large_ones_shrink_only_when_asked() -> None:
    for data in (encoded(1), encoded(1, "JPEG"), encoded(1, "WEBP"), saved(image("L"), "PNG")):
        assert prepare(data, Encoding())[0] == data
        assert prepare(data, Encoding(max_side=40))[0] == data
    small, size, notes = prepare(encoded(1, "JPEG"), Encoding(max_side=20))
    assert (size, notes) == ((20, 15), ["resized"])
    assert Image.open(io.BytesIO(small)).size == (20, 15)
    assert prepare(encoded(1), Encoding(form="webp"))[0][8:12] == b"WEBP"


def test_an_orientation_that_means_nothing_turns_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 0
    out = io.BytesIO()
    Image.new("RGB", (4, 3)).save(out, "JPEG", exif=exif)
    data, size, notes = prepare(out.getvalue(), Encoding())
    assert (data, size, notes) == (out.getvalue(), (4, 3), [])


def test_the_header_alone_tells_plain_images_from_others() -> None:
    plain = [
        encoded(1, "JPEG", 33, 21, progressive=True),
        encoded(1, "PNG", 33, 21),
        encoded(1, "JPEG", 33, 21, quality=5),
    ]
    plain += [saved(image("L").resize((33, 21)), form) for form in ("JPEG", "PNG")]
    assert [plain_size(data) for data in plain] == [(33, 21)] * len(plain)
    others = [data for data, *_ in QUIRKS.values()] + [saved(image("L"), "PNG", transparency=3), encoded(1, "WEBP")]
    assert [plain_size(data) for data in others] == [None] * len(others)
    for data in plain:
        assert all(plain_size(data[:length]) in (None, (33, 21)) for length in range(0, 400, 7))


def test_damage_in_the_middle_is_found_when_every_pixel_is_decoded() -> None:
    assert prepare(broken_png(), Encoding())[0] == broken_png()
    with pytest.raises(BadSample, match="corrupt"):
        prepare(broken_png(), Encoding(decode=True))


def test_the_table_as_json_and_a_rerun(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(folder / "t.csv", [PAIR, {**PAIR, "after": "2.png", "caption": ""}])
    first = convert(capsys, "generic", folder / "out", "--table", path, "--report", folder / "r.json")
    again = convert(capsys, "generic", folder / "out", "--table", path)
    assert first == again
    report = json.loads((folder / "r.json").read_text())[0]
    assert (report["read"], report["written"], report["skipped"]) == (2, 1, {"no_caption": 1})
    put(folder / "0.png", encoded(5, "PNG", 70, 70))
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert (code, "was written from other inputs or options" in error) == (2, True)
    assert convert(capsys, "generic", folder / "out", "--table", path, "--overwrite")[0] == 0
