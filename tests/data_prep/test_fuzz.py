"""Damaged tables and archives: an outcome in which every row is counted, or one line; no traceback, and no gigabyte."""

import json
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from raw_data import encoded, numbered_images, put, table

from onediff.cli import main

ROWS = [
    {"before": f"{a}.png", "after": f"{b}.jpg", "caption": f"{a} became {b}, slowly", "split": "train" if a else "test"}
    for a in range(6)
    for b in range(0, 6, 2)
]


def seeds(folder: Path) -> dict[str, tuple[Path, list[str]]]:
    """By kind: a sound file, and the command that reads it."""
    numbered_images(folder)
    put(folder / "t.jsonl", "\n".join(map(json.dumps, ROWS)))
    put(folder / "t.json", ROWS)
    table(folder / "t.csv", ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "t.parquet")
    with pyarrow.OSFile(str(folder / "t.arrow"), "wb") as file:
        rows = pyarrow.Table.from_pylist(ROWS)
        with pyarrow.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows)
    images = [f"{n}.{kind}" for n in range(6) for kind in ("png", "jpg")]
    with tarfile.open(folder / "i.tar", "w") as tar:
        for name in images:
            tar.add(folder / name, name)
    with zipfile.ZipFile(folder / "i.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in images:
            archive.write(folder / name, name)
    with tarfile.open(folder / "w.tar", "w") as tar:
        for n in range(4):
            tar.add(put(folder / "w" / f"{n}.jpg", encoded(n, "JPEG")), f"{n}.jpg")
            tar.add(put(folder / "w" / f"{n}.json", {"caption": f"photo {n}"}), f"{n}.json")
    found = {
        f"{kind} table": (folder / f"t.{kind}", ["generic", "--images", str(folder), "--table"])
        for kind in ("csv", "json", "jsonl", "parquet", "arrow")
    }
    for kind in ("tar", "zip"):
        found[f"{kind} of images"] = (folder / f"i.{kind}", ["generic", "--table", str(folder / "t.csv"), "--images"])
    return {**found, "webdataset": (folder / "w.tar", ["webdataset", "--annotations"])}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one to three faults of the kinds that disks, networks and people make."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at, length = draw.randrange(len(made) or 1), draw.choice((1, 2, 8, 60, 512))
        match draw.randrange(6):
            case 0:
                made[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del made[at:]
            case 2:
                del made[at : at + length]
            case 3:
                made[at:at] = made[at : at + length]
            case 4:
                made[at : at + length] = bytes(length)
            case 5:
                made[at:at] = draw.choice(
                    (b'"', b"\n", b"\xff", b"[", b"{", b"NaN", b"\x00", b",", b"PK\x03\x04", b"1e999")
                )
    return bytes(made)


def memory(name: str) -> int:
    """A figure of this process in KB: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize("count", [64, pytest.param(2000, marks=pytest.mark.long)])
def test_damaged_tables_and_archives(tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    draw, kinds = random.Random(count), seeds(tmp_path)
    outcomes = {0: 0, 2: 0}
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here, whatever ran in this process before
    began_with = memory("VmRSS")
    for number in range(count):
        kind, (sound, words) = list(kinds.items())[number % len(kinds)]
        path = tmp_path / f"damaged{sound.suffix}"
        path.write_bytes(mutated(sound.read_bytes(), draw))
        out, report = tmp_path / "out", tmp_path / "report.json"
        options = ["--out", out, "--processes", "1", "--max-skipped", "100%", "--report", report, "--decode"]
        case = f"number {number}, {kind}"
        try:
            code = main(["data", "convert", *words, str(path), *map(str, options)])
        except BaseException as error:
            raise AssertionError(case) from error
        said = capsys.readouterr().err
        assert code == 0 or (code == 2 and said.splitlines()[-1].startswith("onediff: error: ")), case
        outcomes[code] += 1
        if code == 0:
            splits = json.loads(report.read_text())
            for split in splits:
                assert split["read"] == split["written"] + sum(split["skipped"].values()), case
            if kind.endswith("of images"):
                assert sum(split["read"] for split in splits) == len(ROWS), case
        shutil.rmtree(out, ignore_errors=True)
    assert min(outcomes.values()) > count // 20, "both ends are met"
    assert memory("VmHWM") - began_with < 1 << 20, "1 GB"
