"""The kinds of files that people have, and how a conversion handles each. Writes the table in docs/data.md.

python tests/data_prep/test_what_was_tried.py
"""

import contextlib
import io
import json
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parent)]

from raw_data import PAIR, encoded, numbered_images, pixels, put, table, tar_with  # noqa: E402
from test_foreign_formats import img2dataset, pairs_table, saved_to_disk  # noqa: E402
from test_foreign_formats import tar as tar_of  # noqa: E402

from onediff.cli import main  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs/data.md"
BEGIN, END = "| what was tried | what happens |\n| --- | --- |\n", "\n\n"
GENERIC = ("generic", "--table")


def image(name: str, data: bytes | Callable[[], bytes]) -> Callable[[Path], tuple[str, ...]]:
    """One image beside a sound one."""

    def made(folder: Path) -> tuple[str, ...]:
        put(folder / name, data if isinstance(data, bytes) else data())
        return (*GENERIC, str(table(folder / "t.csv", [PAIR, {**PAIR, "after": name}])))

    return made


def cells(name: str, data: bytes) -> Callable[[Path], tuple[str, ...]]:
    """One table of sound images."""
    return lambda folder: (*GENERIC, str(put(folder / name, data)))


def images_in(name: str, write: Callable[[Path], object]) -> Callable[[Path], tuple[str, ...]]:
    """An archive of images."""

    def made(folder: Path) -> tuple[str, ...]:
        write(folder / name)
        rows = [PAIR, {**PAIR, "after": "2.png"}]
        return (*GENERIC, str(table(folder / "t.csv", rows)), "--images", str(folder / name))

    return made


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def plain(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(pixels(7, width, height))


def heic() -> bytes:
    import pillow_heif

    out = io.BytesIO()
    pillow_heif.from_pillow(plain()).save(out)
    return out.getvalue()


def animated() -> bytes:
    return saved(plain(), "GIF", save_all=True, append_images=[Image.fromarray(pixels(8))])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(plain(), "JPEG", exif=exif)


def holed() -> bytes:
    data = bytearray(saved(Image.fromarray(pixels(7, 400, 300)), "JPEG", quality=95))
    data[len(data) // 3 : len(data) // 3 + 400] = bytes(400)
    return bytes(data)


def zipped(path: Path, damaged: bool = False) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f".\\{number}.png" if number == 1 else f"{number}.png", encoded(number))
        at = archive.getinfo("2.png").header_offset + 40
    if damaged:
        data = bytearray(path.read_bytes())
        data[at : at + 30] = b"\xff" * 30
        path.write_bytes(data)


def tarred(path: Path, mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for number in range(3):
            tar.add(path.parent / f"{number}.png", f"{number}.png")


def renamed(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(("0.PNG", "1.jpg", "2.png")):
            archive.writestr(name, encoded(number, "JPEG" if name == "1.jpg" else "PNG"))


def damaged_name(folder: Path) -> tuple[str, ...]:
    rows = pyarrow.table({name: [value] for name, value in PAIR.items()})
    with pyarrow.OSFile(str(folder / "t.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, rows.schema) as writer:
        writer.write_table(rows)
    data = (folder / "t.arrow").read_bytes().replace(b"caption", b"capti\xb3n")
    return (*GENERIC, str(put(folder / "t.arrow", data)))


def joined(path: Path) -> None:
    tarred(path)
    path.write_bytes(path.read_bytes() * 2)


def laion(folder: Path) -> tuple[str, ...]:
    img2dataset(folder / "laion/00000.tar", 0, 3)
    return ("webdataset", str(folder / "laion"))


def last_names_split(folder: Path) -> tuple[str, ...]:
    for number, told in enumerate(({}, {"split": "train", "caption_2": "more"})):
        members = {"0.jpg": encoded(number, "JPEG"), "0.json": {"caption": "a", **told}}
        tar_of(folder / f"late/{number}.tar", members)
    return ("webdataset", str(folder / "late"))


def packed(folder: Path) -> tuple[str, ...]:
    (folder / "wds").mkdir()
    tarred(folder / "images.tar.gz", "w:gz")
    (folder / "images.tar.gz").rename(folder / "wds/0.tar.gz")
    return ("webdataset", str(folder / "wds"))


def from_disk(folder: Path) -> tuple[str, ...]:
    saved_to_disk(folder / "saved", pairs_table(range(4)))
    return ("hf", str(folder / "saved"), "--columns", "id=img_id")


def imagefolder(folder: Path) -> tuple[str, ...]:
    put(folder / "if/train/0.png", encoded(0))
    put(folder / "if/train/metadata.jsonl", '{"file_name": "0.png", "text": "a field"}')
    return ("hf", str(folder / "if"))


ROW = json.dumps({**PAIR, "caption": "it moved, slowly"})
TRIED: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "JPEG, PNG, WebP": image("x.webp", lambda: saved(plain(), "WEBP")),
    "GIF with several frames": image("x.gif", animated),
    "BMP": image("x.bmp", lambda: saved(plain(), "BMP")),
    "PPM": image("x.ppm", lambda: saved(plain(), "PPM")),
    "TIFF": image("x.tif", lambda: saved(plain(), "TIFF")),
    "TIFF of floats from 0 to 1": image(
        "x.tif", lambda: saved(Image.fromarray(np.float32(pixels(7)[..., 0] / 255)), "TIFF")
    ),
    "TIFF of floats from -1 to 1": image(
        "x.tif", lambda: saved(Image.fromarray(np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30)), "TIFF")
    ),
    "TIFF of 32-bit integers": image(
        "x.tif", lambda: saved(Image.fromarray(np.int32(pixels(7)[..., 0]) * 10**6 + 10**6), "TIFF")
    ),
    "16-bit PNG": image("x.png", lambda: saved(Image.fromarray(np.uint16(pixels(7)[..., 0]) * 256), "PNG")),
    "AVIF": image("x.avif", lambda: saved(plain(), "AVIF")),
    "JPEG 2000": image("x.jp2", lambda: saved(plain(), "JPEG2000")),
    "HEIC, with pillow-heif": image("x.heic", heic),
    "JPEG XL": image("x.jxl", b"\xff\x0a" + bytes(50)),
    "EPS": image("x.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "PDF": image("x.pdf", b"%PDF-1.7\n"),
    "SVG": image("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "CMYK JPEG": image("x.jpg", lambda: saved(plain().convert("CMYK"), "JPEG")),
    "PNG with a palette": image("x.png", lambda: saved(plain().convert("P"), "PNG")),
    "PNG with transparency": image("x.png", lambda: saved(plain().convert("RGBA"), "PNG")),
    "JPEG rotated by its EXIF tag": image("x.jpg", turned),
    "JPEG cut short": image("x.jpg", lambda: saved(plain(200, 200), "JPEG")[:-600]),
    "JPEG with a hole, under --decode": image("x.jpg", holed),
    "PNG cut short": image("x.png", lambda: encoded(3, "PNG", 90, 90)[:-60]),
    "empty image file": image("x.jpg", b""),
    "web page saved under an image's name": image("x.jpg", b"<!doctype html><title>Not found</title>"),
    "PNG named .jpg": image("x.jpg", lambda: encoded(3)),
    "image named in another case": lambda folder: (
        *GENERIC,
        str(table(put(folder / "X.PNG", encoded(3)).with_name("t.csv"), [{**PAIR, "after": "x.png"}])),
    ),
    "image of 1 × 20,000 pixels": image("x.png", lambda: saved(Image.new("RGB", (1, 20_000)), "PNG")),
    "PNG of four gigapixels": image("x.png", lambda: giga()),
    "CSV with semicolons": cells("t.csv", b"before;after;caption\n0.png;1.png;it moved, slowly\n"),
    "CSV with tabs": cells("t.csv", b"before\tafter\tcaption\n0.png\t1.png\tit moved, slowly\n"),
    "CSV in UTF-16": cells("t.csv", 'before,after,caption\r\n0.png,1.png,"a, b"\r\n'.encode("utf-16")),
    "CSV in Latin-1": cells("t.csv", "before,after,caption\n0.png,1.png,grün\n".encode("latin-1")),
    "CSV with an unquoted comma": cells("t.csv", b"before,after,caption\n0.png,1.png,it moved, slowly\n"),
    "CSV with two columns of the same name": cells("t.csv", b"before,after,caption,caption\n0.png,1.png,a,b\n"),
    "CSV with dates, and columns named `size` and `notes`": cells(
        "t.csv", b"before,after,caption,day,size,notes\n0.png,1.png,gone,2024-05-01,XL,at night\n"
    ),
    "CSV with lists as NumPy prints them": cells("t.csv", b"before,after,caption\n0.png,1.png,\"['a' 'b']\"\n"),
    "CSV with True as a split": cells("t.csv", b"before,after,caption,split\n0.png,1.png,gone,True\n"),
    "CSV with a cell of 200,000 characters": cells("t.csv", b"before,after,caption\n0.png,1.png," + b"word " * 40_000),
    "JSON, an array of rows": cells("t.json", f"[{ROW}]".encode()),
    "JSON, rows under a key": cells("t.json", f'{{"info": 1, "data": [{ROW}]}}'.encode()),
    "JSON, several arrays of rows": cells("t.json", f'{{"a": [{ROW}], "b": [{ROW}]}}'.encode()),
    "JSON with a repeated key": cells("t.jsonl", b'{"before": "0.png", "before": "1.png", "caption": "a"}'),
    "JSON with `Split` in one row and `split` in another": cells(
        "t.jsonl",
        f'{{"Split": "test", {ROW[1:]}\n{{"split": "train", {ROW[1:]}'.encode(),
    ),
    "JSON with NaN as a caption": cells(
        "t.jsonl", f'{ROW}\n{{"before": "2.png", "after": "3.png", "caption": NaN}}'.encode()
    ),
    "Excel": cells("t.xlsx", b"PK\x03\x04"),
    "Parquet cut short": cells("t.parquet", b"PAR1" + bytes(50)),
    "Arrow with a damaged column name": damaged_name,
    "tar of images": images_in("i.tar", tarred),
    "zip of images with Windows paths": images_in("i.zip", zipped),
    "zip of images named in another case or with another suffix": images_in("i.zip", renamed),
    "empty zip file": images_in("i.zip", lambda path: path.write_bytes(b"")),
    "gzipped tar of images": images_in("i.tar.gz", lambda path: tarred(path, "w:gz")),
    "zip with a damaged member": images_in("i.zip", lambda path: zipped(path, True)),
    "zip cut short": images_in("i.zip", lambda path: path.write_bytes((zipped(path), path.read_bytes()[:-30])[1])),
    "two tars joined by cat": images_in("i.tar", joined),
    "tar with a link": images_in("i.tar", lambda path: tar_with(path, "2.png", tarfile.SYMTYPE, "/etc/passwd")),
    "tars of img2dataset": laion,
    "tars of which only the last names a split": last_names_split,
    "gzipped tars": packed,
    "folder written by `save_to_disk`": from_disk,
    "imagefolder with metadata.jsonl": imagefolder,
}


def giga() -> bytes:
    data = bytearray(encoded(0))
    data[16:24] = (65_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def outcome(folder: Path, words: tuple[str, ...]) -> str:
    """What the user is told: the report's words, or the error line."""
    report, said = folder / "report.json", io.StringIO()
    options = ["--out", str(folder / "out"), "--report", str(report), "--processes", "1", "--decode"]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(["data", "convert", *words, *options])
    if code:
        line = said.getvalue().splitlines()[-1].removeprefix("onediff: error: ")
        return "refused: " + shorten(line.replace(f"{folder}/", ""), 130, placeholder=" …")
    (split,) = json.loads(report.read_text())
    parts = []
    if split["skipped"]:
        detail = split["details"][0].replace(f"{folder}/", "").split(": ", 2)
        told = split["skipped"].keys() & {"not_an_image", "bad_image", "too_large", "no_caption"}
        reason = f": {shorten(detail[-1], 100, placeholder=' …')}" if told else ""
        parts.append(f"skipped and counted as `{', '.join(split['skipped'])}`{reason}")
    noted = [note for note in split["noted"] if note not in ("sizes_differ", "grey")]
    if noted:
        parts.append("converted, noted as " + ", ".join(f"`{note}`" for note in noted))
    return "; ".join(parts) or "converted"


def rows(folder: Path) -> list[str]:
    made = []
    for number, (name, make) in enumerate(TRIED.items()):
        place = numbered_images(folder / str(number))
        made.append(f"| {name} | {outcome(place, make(place))} |")
    return made


def test_the_page_says_what_happens(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    text = PAGE.read_text()
    shown = text[text.index(BEGIN) + len(BEGIN) :].split(END)[0].splitlines()
    assert rows(tmp_path) == shown, "python tests/data_prep/test_what_was_tried.py rewrites the table"


if __name__ == "__main__":
    page: Any = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    with tempfile.TemporaryDirectory() as work:
        lines = rows(Path(work))
    PAGE.write_text(head + BEGIN + "\n".join(lines) + END + rest.partition(END)[2])
