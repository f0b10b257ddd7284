"""`onediff caption`: two files, two folders, a table, a video; text, JSON, attention map and a page."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from models import tiny_config, tiny_model
from PIL import Image
from streams import tokenizer

import onediff
from onediff.cli import main
from onediff.config.data import PromptConfig
from onediff.config.model import ImageConfig
from onediff.data.geometry import input_box, seen_box
from onediff.errors import UserError
from onediff.evaluation.attention_map import COLOURS, map_images, packed, side_by_side, unpacked
from onediff.evaluation.pairs import from_video, pairs_of
from onediff.model.saved import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "saved"
    save_model(tiny_model(), tiny_config(), PromptConfig(), tokenizer(), folder, {})
    return folder


@pytest.fixture
def run(model: Path, capsys: pytest.CaptureFixture[str]):
    def caption(*words: object) -> tuple[int, str, str]:
        code = main(["caption", *map(str, words), "--model", str(model), "--max-new-tokens", "6"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return caption


def write(path: Path, colour: str, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if mode == "RGB" else 90).save(path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name, colour in (("one.png", "red"), ("two.jpg", "blue"), ("alone.png", "green")):
        write(tmp_path / "old" / name, colour)
    write(tmp_path / "new" / "one.bmp", "white", (300, 20))
    write(tmp_path / "new" / "two.gif", "black", mode="L")
    (tmp_path / "new" / "notes.txt").write_text("no image")
    return tmp_path / "old", tmp_path / "new"


def test_two_files_print_a_sentence_or_json_and_the_python_call_says_the_same(run, model, tmp_path):
    before, after = write(tmp_path / "a.png", "red"), write(tmp_path / "b.png", "blue", mode="L")
    code, out, _ = run(before, after)
    said = onediff.load(model).caption(before, after, max_new_tokens=6)
    assert (code, out) == (0, said + "\n")
    arrays = [np.asarray(Image.open(path)) for path in (before, after)]
    assert onediff.load(model).caption(*arrays, max_new_tokens=6) == said
    with pytest.raises(UserError, match=r"an array of float64, \(4, 4\)"):
        onediff.load(model).caption(np.zeros((4, 4)), after)
    code, out, _ = run(before, after, "--json")
    assert json.loads(out) == {"id": "a", "before": str(before), "after": str(after), "caption": said}


def test_folders_are_matched_by_name_and_each_pair_gets_a_map(run, folders, tmp_path):
    maps = tmp_path / "maps"
    code, out, errors = run(*folders, "--attention", maps)
    assert code == 0 and f"{folders[0]}: 1 without a counterpart, left out: alone.png" in errors
    assert [line.split(": ")[0] for line in out.splitlines()] == ["one", "two"]
    assert sorted(path.name for path in maps.iterdir()) == ["one.png", "two.png"]
    with Image.open(maps / "two.png") as sheet:
        assert sheet.size == (256 + 4 + 256, 192), "images of 40 x 30 are enlarged"


def test_what_cannot_be_read_is_left_out_and_said_in_the_end(run, folders):
    (folders[1] / "two.gif").write_bytes(b"GIF89a and no more")
    code, out, errors = run(*folders)
    assert code == 2
    assert [line.split(": ")[0] for line in out.splitlines()] == ["one"]
    assert "1 of 2 pairs are left out" in errors and "two.gif: not an image" in errors


def test_every_unreadable_pair_is_named_and_a_name_that_is_no_text_does_not_cost_the_report(run, tmp_path):
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        for name in ("cut.png", "empty.png"):
            (tmp_path / folder / name).write_bytes(b"")
        for name in (b"two\nlines.png", b"no utf-8 \xff.png"):
            write(tmp_path / folder / os.fsdecode(name), "red")
    page = tmp_path / "page.html"
    code, out, errors = run(tmp_path / "old", tmp_path / "new", "--report", page)
    assert code == 2 and "2 of 4 pairs are left out" in errors
    assert "left out: " in errors and "cut.png: not an image" in errors and "empty.png: not an image" in errors
    assert [line.split(": ")[0] for line in out.splitlines()] == ["no utf-8 ?", "two lines"]
    assert "no utf-8 ?" in page.read_text(encoding="utf-8")


def test_a_table_with_captions_becomes_a_page_that_opens_and_filters(run, folders, tmp_path):
    table = tmp_path / "pairs.csv"
    rows = [
        "id,before,after,caption",
        'x,old/one.png,new/one.bmp,"it is white, now"',
        "x,old/one.png,new/one.bmp,white",
    ]
    table.write_text("\n".join([*rows, "y,old/two.jpg,new/two.gif,"]))
    code, out, _ = run(table, "--report", tmp_path / "page.html")
    assert code == 0 and len(out.splitlines()) == 2
    with Browser(tmp_path / "profile") as browser:
        browser.open((tmp_path / "page.html").as_uri())
        cards = "[...document.querySelectorAll('article .id')].map(e => e.textContent)"
        assert browser.run(cards) == ["x", "y"]
        assert (
            browser.run("[...document.querySelectorAll('article li')].map(e => e.textContent)")[0] == "it is white, now"
        )
        # Under the attention map an image stays where it is, and its name below it can be read.
        browser.run("document.getElementById('heat').click()")
        boxes = "(i => { const b = i.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] })"
        shown = browser.run(f"[...document.querySelectorAll('article:first-of-type img')].map({boxes})")
        assert len(shown) == 4 and shown[::2] == shown[1::2] and min(shown[0]) > 0
        browser.run(
            "(() => { const t = document.getElementById('text'); t.value = 'white';"
            " t.dispatchEvent(new Event('input')) })()"
        )
        assert browser.run(cards) == ["x"]
        assert browser.outside() == []


def test_a_video_is_compared_with_its_first_frame_or_the_one_before(run, tmp_path):
    cv2 = pytest.importorskip("cv2")
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 4, (48, 32))
    for shade in range(0, 200, 20):  # ten frames, 2.5 seconds
        writer.write(np.full((32, 48, 3), shade, dtype=np.uint8))
    writer.release()

    def shades(against: str) -> list[tuple[str, int, int]]:
        made = pairs_of([film], 1.0, against)
        return [(p.id, *(round(float(np.asarray(i).mean()) / 20) for i in (p.before, p.after))) for p in made]

    assert shades("previous") == [("1.00s", 0, 4), ("2.00s", 4, 8)]
    assert shades("first") == [("1.00s", 0, 4), ("2.00s", 0, 8)]
    code, out, _ = run(film, "--every", "1")
    assert code == 0 and [line.split(": ")[0] for line in out.splitlines()] == ["1.00s", "2.00s"]
    assert "lower --every" in run(film, "--every", "60")[2]


def test_without_opencv_a_video_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match="pip install opencv-python-headless"):
        from_video(tmp_path / "film.mp4", 1, "first")


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["absent.png", "old"], "absent.png: no such image"),
        (["old"], "old: a single path must be a table"),
        (["old", "old/one.png"], "one is a folder and the other is not"),
        (["old", "empty"], "no image of the same name is in both"),
        (["old", "new", "old"], "3 paths: give two images"),
        (["bare.csv"], "bare.csv: no column 'after' in the header"),
        (["half.csv"], "half.csv: line 2: needs a before and an after"),
        (["other.csv"], "other.csv: line 3: id '1' names other images in an earlier row"),
        (["twice", "old"], "twice: both one.jpg and one.png"),
    ],
)
def test_wrong_paths_are_one_clear_line(run, folders, tmp_path, monkeypatch, paths, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare.csv").write_text("before\nx\n")
    (tmp_path / "half.csv").write_text("before,after\nx,\n")
    (tmp_path / "other.csv").write_text("id,before,after\n1,a,b\n1,a,c\n")
    write(tmp_path / "twice" / "one.png", "red")
    write(tmp_path / "twice" / "one.jpg", "red")
    code, out, errors = run(*paths)
    assert (code, out) == (2, "")
    assert errors.count("\n") == 1 and said in errors


def test_the_map_covers_what_the_model_sees():
    assert seen_box((400, 300), ImageConfig(size=300, fit="crop")) == (50, 0, 350, 300)
    assert seen_box((400, 300), ImageConfig(size=64, fit="squash")) == (0, 0, 400, 300)
    assert seen_box((400, 300), ImageConfig(size=64)) == (0, 0, 400, 300)
    assert input_box((400, 300), ImageConfig(size=64)) == (0, -50, 400, 350)
    left, top, right, bottom = seen_box((400, 300), ImageConfig(size=224, fit="crop", shorter_side=256))
    assert (right - left, bottom - top) == pytest.approx((262.5, 262.5), abs=1) and top == 18.75
    heat = np.zeros((2, 4, 4))
    heat[1, 0, 3] = 1.0
    assert unpacked(packed(heat)).tolist() == (heat * 255).astype(int).tolist()
    grey = Image.new("RGB", (400, 300), (90, 90, 90))
    config = ImageConfig(size=64, fit="crop")
    sheet = np.asarray(side_by_side(grey, grey, unpacked(packed(heat)), config)).astype(int)
    second = sheet[:, -400:]
    margin = second[:, :45]
    assert margin.min() == margin.max() > 120, "what the model did not see is paler, of one colour"
    # The one place that was looked at, top right of the middle square, is the brightest.
    assert second[10:60, 290:340].mean() > second[200:290, 60:200].mean() + 40
    for size, drawn in (((64, 48), (256, 192)), ((30000, 1), (16384, 1)), ((3000, 2000), (3000, 2000))):
        sheet = side_by_side(*[Image.new("RGB", size)] * 2, unpacked(packed(heat)), ImageConfig(size=64))
        gap = sheet.width - 2 * drawn[0]
        assert sheet.height == drawn[1] and 4 <= gap <= 40, "small images are enlarged, so that people see the map"
    # What falls on padding, rows 0 and 3 of a 2:1 image, is neither shown nor does it take the colours from the rest.
    heat[0, 0, 0], heat[1] = 4.0, np.eye(4)
    before, after = map_images(unpacked(packed(heat)), [(80, 40), (80, 40)], ImageConfig(size=64))
    assert before.getextrema()[3] == (0, 0)
    assert after.getpixel((30, 9)) == COLOURS[-1] and after.getpixel((70, 9)) == COLOURS[0]
