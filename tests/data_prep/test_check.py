"""data_prep.check, repair, stats and the indexing of foreign tars: every fault named by shard and key."""

import dataclasses
import http.server
import io
import json
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from raw_data import encoded

from data_prep.tar import TarWriter
from data_prep.writer import write_dataset
from onediff.cli import main
from onediff.data.index import index_path, read_index
from onediff.data.manifest import build_manifest, read_manifest, write_manifest
from onediff.data.sample import Sample, encode_sample


def sample(i: int, split: str = "train", base: int = 0) -> Sample:
    images = {"before": encoded(base + 2 * i, "JPEG", height=38), "after": encoded(base + 2 * i + 1, height=38)}
    meta = {"change_type": ("add", "move")[i % 2]}
    return Sample(f"{split} {i}", "s", "pair", split, (f"number {i} moved", "yes"), meta=meta, images=images)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound data set: eight training pairs in two shards, two test pairs."""
    for split, count, base in (("train", 8, 0), ("test", 2, 100)):
        made = partial(sample, split=split, base=base)
        write_dataset(made, count, tmp_path, name="d", split=split, shard_samples=4, processes=1, progress=False)
    return tmp_path


def check(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["data", "check", str(folder), "--processes", "1", *words])
    return code, capsys.readouterr().out.splitlines()


def rewrite(tar: Path, change: Callable[[list[list[tuple[str, bytes]]]], None], renew: bool = True) -> None:
    """Writes a shard again with its samples changed, and the manifest and index with it."""
    with tarfile.open(tar) as file:
        members = [(name, file.extractfile(name).read()) for name in file.getnames()]
    samples = [members[at : at + 3] for at in range(0, len(members), 3)]
    change(samples)
    writer = TarWriter(tar)
    for files in samples:
        writer.add(files)
    writer.close()
    if renew:
        index_path(tar).unlink()
        read_index(tar)
        old = read_manifest_quietly(tar.parent)
        new = build_manifest(tar.parent, checksums=True)
        write_manifest(dataclasses.replace(old, shards=new.shards))


def read_manifest_quietly(folder: Path):
    from onediff.data.manifest import parse_manifest

    return parse_manifest(folder / "manifest.json")


def test_a_sound_data_set_has_no_faults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(folder, capsys) == (
        0,
        ["test: 2 samples in 1 shard", "train: 8 samples in 2 shards", "0 faults, 0 remarks"],
    )
    assert check(folder / "train", capsys)[0] == 0
    capsys.readouterr()
    assert main(["data", "check", str(folder), "--processes", "2"]) == 0


def with_record(samples: list[list[tuple[str, bytes]]], place: int, **fields: object) -> None:
    name, data = samples[place][2]
    samples[place][2] = name, json.dumps({**json.loads(data), **fields}).encode()


def with_image(samples: list[list[tuple[str, bytes]]], data: bytes) -> None:
    samples[1][1] = samples[1][1][0], data


def with_key(samples: list[list[tuple[str, bytes]]], place: int, key: str) -> None:
    samples[place] = [(f"{key}.{name.partition('.')[2]}", data) for name, data in samples[place]]


def damaged_png() -> bytes:
    data = bytearray(encoded(9, "PNG", 90, 90))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


FAULTS = {
    "no_caption": (lambda s: with_record(s, 1, captions=[" "]), "00000001: a caption is empty"),
    "bad_schema": (lambda s: with_record(s, 1, meta=3), "00000001: field 'meta' must be an object"),
    "wrong_split": (lambda s: with_record(s, 1, split="test"), "00000001: the record says split 'test', the manifest"),
    "missing_half": (lambda s: s[1].pop(0), "00000001: the pair has only its 'after' image"),
    "bad_json": (lambda s: s[1].__setitem__(2, (s[1][2][0], b"{")), "00000001: the .json cannot be read"),
    "bad_image": (lambda s: with_image(s, damaged_png()), "00000001: image 'after' cannot be decoded"),
    "duplicate": (
        lambda s: (s.__setitem__(1, list(s[0])), with_key(s, 1, "x")),
        "x: same images and texts as d-train-000000.tar 00000000 (sample 0)",
    ),
    "repeated_key": (
        lambda s: with_key(s, 1, "00000000"),
        "00000000: same key as d-train-000000.tar 00000000 (sample 0)",
    ),
    "repeated_id": (
        lambda s: with_record(s, 1, id=sample(0, "train").id),
        "00000001: same id 'train 0' as d-train-000000.tar 00000000 (sample 0), which has other images",
    ),
    "leakage": (
        lambda s: s.__setitem__(1, encode_sample(dataclasses.replace(sample(0, "test", 100), split="train"), "z")),
        "z: its images are also in split test, as d-test-000000.tar 00000000 (sample 0)",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_faulty_sample_is_named_and_left_out_of_the_repaired_copy(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, line = FAULTS[kind]
    tar = folder / "train/d-train-000000.tar"
    rewrite(tar, change)
    code, lines = check(folder, capsys)
    assert code == 1
    assert lines[0].startswith(f"fault: {kind}: {tar} {line}")
    assert lines[-1] == f"1 fault, 0 remarks: {kind} 1"
    clean = tmp_path_factory.mktemp("clean")
    assert main(["data", "repair", str(folder), "--out", str(clean), "--processes", "1"]) == 0
    assert check(clean, capsys)[0] == 0
    assert read_manifest(clean / "train").samples == (8 if kind.startswith("repeated") else 7)
    assert read_manifest(clean / "test").samples == 2


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_damage_to_the_files_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar, other = (folder / f"train/d-train-00000{n}.tar" for n in (0, 1))
    size = tar.stat().st_size
    flip(tar, read_index(tar)[0].members[2].offset + 8)
    _, lines = check(folder, capsys)
    assert any(line.startswith(f"fault: wrong_checksum: {tar}: SHA-256 differs") for line in lines)
    tar.write_bytes(tar.read_bytes()[: size // 2])
    _, lines = check(folder, capsys)
    text = "\n".join(lines)
    assert f"fault: wrong_size: {tar}: {size // 2} bytes, but the manifest says {size}" in text
    assert f"fault: damaged_tar: {tar}: byte " in text
    assert f"fault: wrong_count: {tar}: " in text
    assert f"fault: stale_index: {tar}: the index beside it describes another tar" in text
    tar.unlink()
    index_path(other).write_bytes(b"x")
    _, lines = check(folder, capsys)
    assert f"fault: missing_shard: {tar}: the manifest lists it, but there is no such file" in lines
    assert any(line.startswith(f"fault: stale_index: {other}: the index beside it cannot be read") for line in lines)
    index_path(other).unlink()
    _, lines = check(folder, capsys)
    assert f"remark: no_index: {other}: no index beside it, so it is built at every start" in lines


def test_a_half_lost_shard_is_repaired_to_what_is_whole(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = folder / "train/d-train-000000.tar"
    tar.write_bytes(tar.read_bytes()[: read_index(tar)[2].members[0].offset])
    clean = tmp_path_factory.mktemp("clean")
    assert main(["data", "repair", str(folder), "--out", str(clean), "--processes", "1"]) == 0
    assert read_manifest(clean / "train").samples == 2 + 4
    assert check(clean, capsys)[0] == 0
    assert main(["data", "repair", str(folder), "--out", str(folder)]) == 2


def test_images_are_decoded_unless_told_not_to(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(folder / "train/d-train-000000.tar", lambda s: with_image(s, damaged_png()))
    assert check(folder, capsys)[0] == 1
    assert check(folder, capsys, "--no-pixels")[0] == 0


def test_a_pair_of_two_evaluation_splits_is_a_remark(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(partial(sample, split="val", base=100), 1, folder, name="d", split="val", processes=1, progress=False)
    code, lines = check(folder, capsys)
    assert code == 0
    assert lines[-1] == "0 faults, 1 remark: leakage 1"


def half_seen_in_test(i: int) -> Sample:
    """A pair of `val` whose before image is that of a training pair; its after image is its own."""
    made = sample(200 + i, split="val", base=0)
    return dataclasses.replace(
        made, images={**made.images, "before": sample(i, split="train", base=0).images["before"]}
    )


def test_one_image_shared_with_another_split_is_a_remark(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(half_seen_in_test, 2, folder, name="d", split="val", processes=1, progress=False)
    code, lines = check(folder, capsys)
    assert code == 0
    assert lines[-1] == "0 faults, 2 remarks: shared_image 2"
    assert any("one of its images is also in split val, in d-val-000000.tar 00000001" in line for line in lines)


def test_a_data_set_behind_a_url_is_checked_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its shards have no index there, and need none."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    rewrite(folder / "train/d-train-000000.tar", FAULTS["no_caption"][0])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert main(["data", "check", address, "--processes", "1"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "fault: no_caption: train/d-train-000000.tar 00000001: a caption is empty"
        assert lines[-1] == "1 fault, 0 remarks: no_caption 1"
        assert main(["data", "stats", f"{address}/test", "--processes", "1"]) == 0
        assert capsys.readouterr().out.splitlines()[2].split()[:2] == ["test", "2"]
        (folder / "test/d-test-000000.tar").unlink()
        assert main(["data", "check", address, "--processes", "1"]) == 1
        assert "missing_shard: test/d-test-000000.tar: http://127" in capsys.readouterr().out
        server.shutdown()


def test_findings_as_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(folder / "train/d-train-000000.tar", FAULTS["no_caption"][0])
    _, said = check(folder, capsys, "--json", "--out", str(tmp_path / "f.json"), "--limit", "0")
    fields = json.loads((tmp_path / "f.json").read_text())
    assert json.loads("\n".join(said)) == fields
    assert main(["data", "check", str(folder), "--json", "f.json"]) == 2
    assert "--json prints, --out FILE writes" in capsys.readouterr().err
    assert fields["counts"] == {"no_caption": 1}
    assert fields["samples"] == {"test": 2, "train": 8}
    assert (fields["findings"][0]["key"], fields["findings"][0]["place"]) == ("00000001", 1)


def test_stats_count_what_was_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(folder / "train/d-train-000000.tar", FAULTS["no_caption"][0])
    assert main(["data", "stats", str(folder), "--processes", "1", "--out", str(tmp_path / "s.json")]) == 0
    assert "  words_per_caption: min 1, median 1, mean 2, p95 3, max 3" in capsys.readouterr().out.splitlines()
    train = json.loads((tmp_path / "s.json").read_text())["train"]
    assert train["samples"] == 8
    assert train["captions"] == 14
    assert train["change_type"] == {"add": 4, "move": 3}
    assert train["format"] == {"jpg": 7, "png": 7}
    assert train["sizes"] == {"40x38": 14}
    assert train["kind"] == {"pair": 7}
    assert train["bad"] == {"no_caption": 1}


def test_stats_and_sheets_in_tokens_of_a_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo's model, with a tokenizer that is still to be learned; the phase itself does not pack."""
    run = tmp_path / "run.yaml"
    run.write_text(
        f"name: tokens\nmodel: models/tiny\ndata: {{sets: {{d: {folder}}}, max_tokens: 256}}\n"
        "phases: {one: {mix: {d: 1}, steps: 1, global_batch: 4, micro_batch: 4}}\n"
    )
    words = ["data", "stats", str(folder), "--processes", "1", "--out", str(tmp_path / "s.json"), "--tokens", str(run)]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in said if "samples: min" in line] == [
        "tokens of 2 samples",
        "tokens of 8 samples",
    ]
    assert any("in micro-batches of 4, padded to the longest row" in line and "rows of 512" in line for line in said)
    lengths = json.loads((tmp_path / "s.json").read_text())["train"]["lengths"]
    assert lengths["samples"] == 8 and 64 < lengths["tokens"]["min"] <= lengths["tokens"]["max"] <= 256
    assert 0 <= lengths["padding"] < 1 and lengths["samples_per_row"] > 1
    assert main([*words[:-1], str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    sheet = ["data", "show", str(run), "--samples", "3", "--lengths", "8", "--out", str(tmp_path / "sheet.png")]
    assert main(sheet) == 0
    assert capsys.readouterr().out.count("16 before + 16 after + 16 delta") == 3
    assert main([*sheet, "phases.one.pack=700"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("row 1: 5 samples, 6") and said.count("16 before + 16 after + 16 delta") == 5
    assert "to 699: padding" in said and "in packed rows of 700, 5.0 samples each" in said
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_a_page_shows_samples_with_their_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(folder / "train/d-train-000000.tar", FAULTS["no_caption"][0])
    words = ["data", "stats", str(folder), "--processes", "1", "--samples", "6", "--html", str(tmp_path / "look.html")]
    assert main(words) == 0
    page = (tmp_path / "look.html").read_text()
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert Counter(card["type"] for card in data["pairs"]) == {"test": 2, "train": 6}
    assert sum(bool(card.get("fault")) for card in data["pairs"]) == 1
    assert page.count("data:image/jpeg;base64,") == 2 * 7 and 'src="http' not in page
    assert "words_per_caption: min 1" in data["block"]
    assert main([*words[:-4], "--samples", "0"]) == 2
    assert "--samples: 0: must be at least 1" in capsys.readouterr().err


def test_tars_of_another_tool_get_an_index_and_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set/train").mkdir(parents=True)
    with tarfile.open(tmp_path / "set/train/a.tar", "w") as tar:
        for name, data in encode_sample(sample(1), "k"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert main(["data", "index", str(tmp_path / "set"), "--licence", "CC0", "--processes", "1"]) == 0
    assert "1 sample in 1 shard" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "set/train")
    assert (manifest.name, manifest.split, manifest.licence, manifest.samples) == ("set", "train", "CC0", 1)
    assert index_path(tmp_path / "set/train/a.tar").exists()
    assert check(tmp_path / "set", capsys)[0] == 0


@pytest.mark.parametrize("command", ["check", "stats", "index"])
def test_a_folder_without_data_is_one_clear_line(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", command, str(tmp_path)]) == 2
    assert "no data set here; give a folder with manifest.json or tars" in capsys.readouterr().err
