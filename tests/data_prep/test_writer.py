"""data_prep.writer: the same bytes with any number of processes and after any kill."""

import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from argparse import ArgumentTypeError
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from data_prep.share import Share, share
from data_prep.tar import TarWriter
from data_prep.writer import WriteJob, claimed, shuffled, write_dataset
from onediff.data.index import build_index, read_index
from onediff.data.manifest import file_sha256, read_manifest
from onediff.data.sample import BadSample, Sample, parse_sample
from onediff.errors import UserError


def image(color: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return out.getvalue()


def make(i: int, bad_every: int = 7, seconds: float = 0.0) -> Sample:
    time.sleep(seconds)
    if i % bad_every == 3:
        raise BadSample("no_caption", f"row {i}: the caption is empty")
    images = {"before": image((i % 256, 0, 0)), "after": image((i % 256, 9, 0))}
    meta = {"notes": ["palette"]} if i % 2 else {}
    return Sample(f"id {i}", "test", "difference", "train", (f"caption {i} é",), meta=meta, images=images)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


def write(out: Path, count: int = 100, **options: object):
    fixed = {"name": "demo", "split": "train", "inputs": "x", "shard_samples": 20, "seed": 5, "progress": False}
    return write_dataset(make, count, out, **{**fixed, **options})


def test_tasks_that_share_the_work_write_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "alone", processes=1)
    (tmp_path / "together" / ".tmp-train").mkdir(parents=True)
    (tmp_path / "together" / ".tmp-train" / "job").write_text("another job, left unfinished")
    with ThreadPoolExecutor(8) as pool:  # more tasks than chunks, and one that never comes
        tasks = [pool.submit(write, tmp_path / "together", processes=1, share=Share(n, 8)) for n in range(8) if n != 2]
        reports = [task.result() for task in tasks]
    assert [report.tally.read for report in reports] == [20, 20, 20, 20, 0, 0, 0]
    assert not (tmp_path / "together" / "train").exists()
    again = write(tmp_path / "together", processes=1, share=Share(0, 8))
    assert again.manifest.shards == reports[0].manifest.shards
    report = write(tmp_path / "together", processes=1)
    assert report.tally.read == 100 and contents(tmp_path / "together" / "train") == contents(
        tmp_path / "alone" / "train"
    )
    assert [path.name for path in (tmp_path / "together").iterdir()] == ["train"]
    done = write(tmp_path / "together", processes=1, share=Share(2, 8))
    assert done.manifest.samples == 86, "a finished data set is left alone"


def test_a_task_of_another_job_keeps_out(tmp_path: Path) -> None:
    other = WriteJob("other", "train", "", "", "y", 1, 1, 1, None)
    with claimed(tmp_path / ".tmp-train", other, beside_others=True):
        with claimed(tmp_path / ".tmp-train", other, beside_others=True):
            assert (tmp_path / ".tmp-train" / "job").exists()
        with pytest.raises(UserError, match="another process is writing here"):
            write(tmp_path, share=Share(0, 2))


@pytest.mark.parametrize("text", ["", "3", "2/2", "0/0", "-1/2", "1/x"])
def test_shares_that_mean_nothing(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="N/TASKS"):
        share(text)
    assert share("3/64") == Share(3, 64)


def test_one_two_and_four_processes_write_the_same_bytes(tmp_path: Path) -> None:
    reports = {n: write(tmp_path / str(n), processes=n) for n in (1, 2, 4)}
    first = contents(tmp_path / "1" / "train")
    assert len(first) == 11  # five shards, their indexes, the manifest
    assert contents(tmp_path / "2" / "train") == first
    assert contents(tmp_path / "4" / "train") == first
    for report in reports.values():
        assert report.tally.read == 100
        assert report.manifest.samples == 100 - 14
        assert report.tally.skipped == {"no_caption": 14}
        assert report.tally.noted == {"palette": 43}
        assert "no_caption: row 3: the caption is empty" in report.tally.details


def test_shards_are_plain_tars_whose_manifest_and_index_are_true(tmp_path: Path) -> None:
    import webdataset

    write(tmp_path, processes=1)
    manifest = read_manifest(tmp_path / "train")
    keys = []
    for shard in manifest.shards:
        path = manifest.path(shard)
        assert file_sha256(path) == shard.sha256
        samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
        index, rebuilt = read_index(path), build_index(path)
        assert rebuilt.damage == ()
        assert list(index) == list(rebuilt)
        assert [sample["__key__"] for sample in samples] == index.keys
        assert len(samples) == shard.samples
        keys += index.keys
        for sample in samples:
            assert parse_sample({k: v for k, v in sample.items() if k[0] != "_"}).id == f"id {int(sample['__key__'])}"
        listing = subprocess.run(["tar", "-tvf", path], capture_output=True, text=True, check=True)
        assert listing.stderr == ""
    order = [i for i in shuffled(100, 5) if i % 7 != 3]
    assert [int(key) for key in keys] == order
    assert order != sorted(order)
    assert sorted(shuffled(100, 5)) == list(range(100))


def test_a_second_call_finds_the_work_done_and_other_inputs_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path, processes=1)
    before = (tmp_path / "train" / "manifest.json").stat().st_mtime_ns
    again = write(tmp_path, processes=1)
    assert (tmp_path / "train" / "manifest.json").stat().st_mtime_ns == before
    assert again.tally.skipped == first.tally.skipped
    with pytest.raises(UserError, match="was written from other inputs or options; remove it, add --overwrite"):
        write(tmp_path, processes=1, inputs="y")
    assert write(tmp_path, processes=1, inputs="y", overwrite=True).manifest.samples == 86
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train"]


def test_shards_are_cut_by_bytes_too(tmp_path: Path) -> None:
    report = write(tmp_path, processes=1, shard_bytes=8000)
    assert len(report.manifest.shards) > 5
    assert max(shard.bytes for shard in report.manifest.shards) < 8000 + 4096
    assert report.manifest.samples == 86


def test_strict_stops_at_the_first_bad_sample_and_leaves_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row \d+: the caption is empty; leave out --strict"):
        write(tmp_path, processes=2, strict=True)
    assert not (tmp_path / "train").exists()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("processes", [2, 3])
def test_a_killed_worker_is_one_clear_line_and_a_rerun_goes_on(tmp_path: Path, processes: int) -> None:
    before, out, mark = set(multiprocessing.active_children()), tmp_path / "out", tmp_path / "killed"
    with pytest.raises(UserError, match=r"a worker process was killed \(out of memory\?\); run the command again"):
        write_dataset(partial(deadly, os.getpid(), mark), 40, out, processes=processes, **DEADLY)
    assert set(multiprocessing.active_children()) <= before
    assert [path.name for path in out.iterdir()] == [".tmp-train"]
    report = write_dataset(partial(deadly, os.getpid(), mark), 40, out, processes=1, **DEADLY)
    assert report.manifest.samples == 40 - 6
    assert [path.name for path in out.iterdir()] == ["train"]


DEADLY = {"name": "demo", "split": "train", "inputs": "x", "shard_samples": 10, "progress": False}


def deadly(survivor: int, mark: Path, i: int) -> Sample:
    """Kills the worker that makes it; the survivor waits for that, so that a worker comes to its turn however busy the
    machine is."""
    if os.getpid() != survivor:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + 300
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return make(i)


def test_nothing_usable_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of 4 samples can be used; the first: no_caption: row 0"):
        write_dataset(partial(always_bad), 4, tmp_path, name="demo", split="train", processes=1, progress=False)


def always_bad(i: int) -> Sample:
    raise BadSample("no_caption", f"row {i}: the caption is empty")


def test_names_that_ustar_cannot_hold_are_written_as_pax(tmp_path: Path) -> None:
    long, odd = "k" * 300, "ключ"
    writer = TarWriter(tmp_path / "a.tar")
    writer.add([(f"{long}.json", b"{}")])
    writer.add([(f"{odd}.json", b"{} ")])
    shard, index = writer.close()
    assert index.keys == [long, odd]
    assert list(build_index(tmp_path / "a.tar")) == list(index)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == [f"{long}.json", f"{odd}.json"]
    assert shard.bytes == (tmp_path / "a.tar").stat().st_size


CHILD = """
import sys
from functools import partial
from data_prep.writer import write_dataset
sys.path[:0] = ["tests/support", "tests/data_prep"]
from test_writer import make
if __name__ == "__main__":
    write_dataset(partial(make, seconds=0.004), 120, sys.argv[1], name="demo", split="train", inputs="x",
                  shard_samples=10, seed=5, processes=int(sys.argv[2]), progress=False)
"""


def run_child(script: Path, out: Path, processes: int, kill_after: float | None) -> None:
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, script, out, str(processes)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
    )
    try:
        child.wait(kill_after if kill_after is not None else 60)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
    error = child.communicate()[1].decode()
    assert child.returncode in (0, -signal.SIGKILL), error
    assert kill_after is not None or child.returncode == 0, error


@pytest.mark.parametrize(
    ("processes", "kills"),
    [
        (1, 3),
        (2, 2),
        pytest.param(1, 20, marks=pytest.mark.long),
        pytest.param(2, 20, marks=pytest.mark.long),
        pytest.param(4, 20, marks=pytest.mark.long),
    ],
)
def test_sigkill_at_random_moments_and_a_rerun_give_the_same_bytes(tmp_path: Path, processes: int, kills: int) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    started = time.monotonic()
    run_child(script, tmp_path / "calm", processes, None)
    whole = time.monotonic() - started
    calm = contents(tmp_path / "calm" / "train")
    draw = random.Random(kills)
    for _ in range(kills):
        out = tmp_path / "killed"
        shutil.rmtree(out, ignore_errors=True)
        run_child(script, out, processes, draw.uniform(0.3, 1.0) * whole)
        run_child(script, out, processes, None)
        assert contents(out / "train") == calm
        assert sorted(path.name for path in out.iterdir()) == ["train"]


@pytest.mark.parametrize("rename", [1, 2])
def test_a_data_set_survives_a_kill_while_another_replaces_it(tmp_path: Path, rename: int) -> None:
    out, script = tmp_path / "out", tmp_path / "child.py"
    write(out)
    old, made = contents(out / "train"), (out / "train").stat().st_ino
    kill = f"if len(done) == {rename}: os.kill(os.getpid(), signal.SIGKILL)"
    body = f"def rename(*names):\n    done.append(names)\n    {kill}\n    whole(*names)\n"
    start = f"import os, signal\ndone, whole = [], os.rename\n{body}os.rename = rename\n"
    script.write_text(start + CHILD.replace("progress=False", "progress=False, overwrite=True"))
    run_child(script, out, 1, kill_after=60)
    assert write(out).manifest.samples == 86
    assert contents(out / "train") == old
    assert (out / "train").stat().st_ino == made, "the old set is there again, not one written like it"
    assert write(out, count=40, overwrite=True).manifest.samples < 40
    assert [path.name for path in out.iterdir()] == ["train"]


def test_two_writers_do_not_share_a_folder(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD.replace("0.004", "0.2"))
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, script, tmp_path / "out", "1"], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "out" / ".tmp-train" / "job").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(UserError, match="another process is writing here"):
            write(tmp_path / "out", processes=1)
    finally:
        child.kill()
        child.wait()


def test_the_manifest_holds_no_times(tmp_path: Path) -> None:
    write(tmp_path, processes=1)
    fields = json.loads((tmp_path / "train" / "manifest.json").read_text())
    assert set(fields) == {
        *("schema", "name", "split", "source", "licence", "samples", "shards"),
        *("inputs", "recipe", "report", "repeated_images"),
    }
    assert fields["repeated_images"] == 0
    assert (
        fields["shards"][0]["sha256"]
        == hashlib.sha256((tmp_path / "train" / fields["shards"][0]["name"]).read_bytes()).hexdigest()
    )
