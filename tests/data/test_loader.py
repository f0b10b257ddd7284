"""The loader: the same global batches for any number of ranks and workers, and after resuming anywhere."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter, deque
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from places import HOUSE, SUPPORT
from streams import global_batches, readable, stream, unbroken, write_set

from onediff.data.cursor import Cursor
from onediff.data.loader import RankShare, read_batches
from onediff.data.position import Position, order_of
from onediff.data.stream import Stream
from onediff.errors import UserError

LANES = 8


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Three sources of uneven shards, some samples bad: pairs, single images, texts."""
    folder = tmp_path_factory.mktemp("sets")
    return {
        write_set(folder / "pairs", [1, 23, 4], "pair", {5: "bad_image", 6: "missing_half", 20: "bad_json"}): 2.0,
        write_set(folder / "singles", [9, 17], "single", {0: "too_many_pixels", 25: "bad_image"}): 1.0,
        write_set(folder / "texts", [3, 1, 1, 40], "text", {44: "bad_json"}): 1.0,
    }


@pytest.fixture(scope="module")
def whole(mixed):
    """Sixty global batches of one rank without workers, with the position before the first and after each."""
    return unbroken(stream(mixed, LANES), LANES, 8, 60)


def test_batches_are_the_rows_of_every_lane_in_turn(mixed, whole):
    made = stream(mixed, LANES)
    for lane in range(LANES):
        index = 0
        for batch in whole[0]:
            row, index = readable(made, lane, index)
            assert batch[lane] == row.ids


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_any_number_of_ranks_reads_the_same(mixed, whole, ranks, micro_batch):
    if LANES % (ranks * micro_batch):
        return
    made = stream(mixed, LANES)
    start = Position.start(made, LANES, 8)
    batches, end = global_batches(made, LANES, start, 60, ranks, 0, micro_batch)
    assert batches == whole[0]
    assert end == whole[1][60]


@pytest.mark.parametrize(("ranks", "workers", "micro_batch"), [(1, 1, 4), (1, 3, 2), (2, 3, 4)])
def test_any_number_of_workers_reads_the_same(mixed, whole, ranks, workers, micro_batch):
    """Real worker processes; three of them do not divide the micro-batch."""
    made = stream(mixed, LANES)
    stored = json.loads(json.dumps(whole[1][7].to_json()))
    position = Position.from_json(stored, order_of(made, LANES, 8))
    batches, end = global_batches(made, LANES, position, 4, ranks, workers, micro_batch)
    assert batches == whole[0][7:11]
    assert end == whole[1][11]


@pytest.fixture(scope="module", params=[None, 100], ids=["a row each", "packed"])
def uneven(request, tmp_path_factory):
    """Shards of 1 to 997 samples, some bad, in a mix; and the first 140 global batches, with where each ends."""
    folder = tmp_path_factory.mktemp("uneven")
    folders = {
        write_set(folder / "texts", [1, 997, 40, 3], "text", {5: "bad_json", 600: "bad_json"}): 3.0,
        write_set(folder / "singles", [61, 2], "single", {60: "bad_image"}): 1.0,
    }
    made = stream(folders, LANES, block=32, pack=request.param)
    batches, positions = unbroken(made, LANES, 32, 140)
    assert made.epochs(0, positions[-1].cursors[0])["singles"] > 4
    return folders, batches, positions, request.param


@pytest.mark.long
def test_resuming_at_fifty_points_with_other_ranks_and_real_workers(uneven):
    folders, batches, positions, pack = uneven
    made = stream(folders, LANES, block=32, pack=pack)
    random = np.random.default_rng(1)
    for _ in range(50):
        stop, steps = int(random.integers(0, 135)), int(random.integers(1, 5))
        ranks, workers = int(random.choice([1, 2, 4, 8])), int(random.choice([0, 1, 3]))
        stored = json.loads(json.dumps(positions[stop].to_json()))
        position = Position.from_json(stored, order_of(made, LANES, 32))
        micro_batch = int(random.choice([size for size in (1, 2, 4, 8) if not LANES % (size * ranks)]))
        found, end = global_batches(made, LANES, position, steps, ranks, workers, micro_batch)
        assert found == batches[stop : stop + steps]
        assert end == positions[stop + steps]


def an_epoch_of_one_rank(rank: int, world: int, folder, folders, results) -> None:
    """Reads the steps of one epoch in lockstep with the other ranks, and reports each lane's samples."""
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    made = stream(folders, LANES)
    share = RankShare.of_rank(LANES, 1, rank, world)
    batches = read_batches(made, 1, Cursor.start(share.lanes), rank % 2, 2, 1.0)
    lanes = {lane: [] for lane in share.lanes}
    longest = max(made.sources[0].lanes.length(lane) for lane in range(LANES))
    for _ in range(longest):
        for lane in share.lanes:
            lanes[lane] += [name for row in next(batches)[0].info["ids"] for name in row]
        together = torch.ones(1)
        dist.all_reduce(together)  # as a training step does: a rank that ran dry would leave the others here
        assert together.item() == world
    results.put(lanes)
    dist.destroy_process_group()


def test_the_end_of_an_epoch_with_real_processes(tmp_path):
    """101 samples in shards of 1 to 61 over four ranks of two lanes: no rank waits; no sample is lost or repeated."""
    folders = {write_set(tmp_path / "texts", [1, 61, 3, 36]): 1.0}
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=an_epoch_of_one_rank, args=(r, 4, tmp_path, folders, results)) for r in range(4)]
    for rank in ranks:
        rank.start()
    try:
        lanes = {lane: ids for _ in ranks for lane, ids in results.get(timeout=300).items()}
    finally:
        for rank in ranks:
            rank.join(10)
            rank.kill()
    source = stream(folders, LANES).sources[0]
    epoch = [name for lane, ids in lanes.items() for name in ids[: source.lanes.length(lane)]]
    assert sorted(lanes) == list(range(LANES))
    assert Counter(epoch) == Counter(f"texts/{i}" for i in range(101))


def test_every_good_sample_once_an_epoch_and_no_bad_one(mixed, whole):
    """The third epoch of each source, read lane by lane, is complete."""
    made = stream(mixed, LANES)
    for number, (source, bad) in enumerate(zip(made.sources, ({5, 6, 20}, {0, 25}, {44}), strict=True)):
        seen = Counter()
        for lane in range(LANES):
            first, last = (source.lanes.length(lane) * epoch for epoch in (2, 3))
            index = 0
            while made.mix.count(number, lane, index) < last:
                here, of_source = made.mix.at(lane, index)
                row, behind = readable(made, lane, index)
                if here == number and of_source >= first and behind == index + 1:
                    seen.update(row.ids)
                index += 1
        good = set(range(source.lanes.samples)) - bad
        assert seen == Counter(f"{source.name}/{i}" for i in good)


def test_bad_samples_are_counted_by_kind_and_reported(mixed):
    made = stream(mixed, LANES)
    faults = []
    for batch, cursor in islice(read_batches(made, LANES, Cursor.start(range(LANES)), 0, 2, 1.0), 20):
        faults += batch.info["skipped"]
        assert cursor.skipped == Counter(fault.kind for fault in faults)
    assert set(cursor.skipped) == {"bad_image", "missing_half", "bad_json", "too_many_pixels"}
    assert {fault.shard for fault in faults} >= {"pairs/part-001.tar", "singles/part-000.tar"}
    assert any(fault[:2] == ("bad_image", "pairs/part-001.tar") and "sample 4:" in fault.what for fault in faults)


@pytest.mark.parametrize("pack", [None, 80])
def test_cut_answers_are_counted_and_logged_by_data_set(tmp_path, caplog, pack):
    """Logs a line for a source's first cut answer, and whenever their number has doubled."""
    made = stream({write_set(tmp_path / name, [40], "pair"): 1.0 for name in ("birds", "pairs")}, LANES, pack=pack)
    lengths = [len(made.one(lane, index).token_ids) for lane in range(LANES) for index in range(4)]
    longest = sorted(lengths)[len(lengths) // 2]
    made.processor.config = made.processor.config.model_copy(update={"max_tokens": longest})
    read = list(islice(read_batches(made, LANES, Cursor.start(range(LANES)), 0, 2, 1.0), 20))
    cut = read[-1][1].cut
    total = sum(sum(batch.info["cut"]) for batch, _ in read)
    assert cut.total() == total > 8 and set(cut) == {"birds", "pairs"}
    lines = [record.getMessage() for record in caplog.records if "answers were cut" in record.getMessage()]
    assert len(lines) == sum(count.bit_length() for count in cut.values()) < total
    assert f"data.max_tokens {longest}; raise it, or set data.too_long: skip" in lines[0]


def test_too_many_bad_samples_stop_the_run_with_one_line(tmp_path):
    folder = write_set(tmp_path / "texts", [200], faults=dict.fromkeys(range(0, 200, 4), "bad_json"))
    made = stream({folder: 1.0}, LANES)
    batches = read_batches(made, LANES, Cursor.start(range(LANES)), 0, 2, 0.1)
    for _ in range(8):
        next(batches)  # a few bad samples at the start stop nothing
    with pytest.raises(
        UserError,
        match=r"unreadable \(\d+ bad_json; most of them: \d+ in texts/part-000.tar\), more than data.bad_share",
    ) as stop:
        deque(batches, maxlen=0)
    assert "\n" not in str(stop.value)


def test_the_log_of_bad_samples_is_bounded(tmp_path, caplog):
    """Logs the first ten by name, and then a line whenever their number has doubled."""
    folder = write_set(tmp_path / "texts", [200], faults=dict.fromkeys(range(0, 200, 2), "bad_json"))
    batches = read_batches(stream({folder: 1.0}, LANES), LANES, Cursor.start(range(LANES)), 0, 2, 1.0)
    *_, (_, cursor) = islice(batches, 60)
    lines = [record.getMessage() for record in caplog.records]
    assert cursor.skipped["bad_json"] > 320
    assert sum("skipped an unreadable sample" in line for line in lines) == 10
    assert sum("most of them" in line for line in lines) == 4  # at 40, 80, 160 and 320


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_in_a_row_stop_the_run_with_one_line(tmp_path, workers):
    folder = write_set(tmp_path / "texts", [60], faults=dict.fromkeys(range(60), "bad_json"))
    batches = read_batches(stream({folder: 1.0}, 4), 4, Cursor.start(range(4)), workers, 2, 1.0)
    with pytest.raises(UserError, match=r"20 unreadable samples in a row.*part-000.tar sample \d+.*data check") as stop:
        next(batches)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("couple", [False, True])
def test_a_set_smaller_than_the_global_batch(tmp_path, couple):
    folder = write_set(tmp_path / "few", [1, 2], "single")
    made = stream({folder: 1.0}, 16, couple=couple)
    start = Position.start(made, 16, 8)
    one, _ = global_batches(made, 16, start, 6, ranks=1, workers=0)
    four, _ = global_batches(made, 16, start, 6, ranks=4, workers=0)
    assert one == four
    counts = Counter(row[0] for batch in one for row in batch)
    assert set(counts) == {"few/0", "few/1", "few/2"}
    assert max(counts.values()) - min(counts.values()) <= 3
    assert all(len(set(row)) == (2 if couple else 1) for batch in one for row in batch)


def test_couples_are_the_same_at_any_number_of_ranks(tmp_path):
    folder = write_set(tmp_path / "singles", [11, 1, 20], "single", {7: "bad_image"})
    made = stream({folder: 1.0}, LANES, couple=True)
    start = Position.start(made, LANES, 8)
    one, end = global_batches(made, LANES, start, 12, ranks=1, workers=0)
    four, same_end = global_batches(made, LANES, start, 12, ranks=4, workers=0)
    assert (one, end) == (four, same_end)
    assert not any("singles/7" in row for batch in one for row in batch)


@pytest.mark.parametrize(("micro_batch", "ranks"), [(3, 1), (8, 2), (1, 3)])
def test_a_batch_that_cannot_be_divided_evenly_is_refused(micro_batch, ranks):
    with pytest.raises(UserError, match=f"must be a multiple of {micro_batch * ranks}$"):
        RankShare.of_rank(8, micro_batch, 0, ranks)


KEPT = """
from onediff.data.loader import LeftOut
from onediff.data.stream import Stream
from onediff.errors import UserError
LeftOut.count = lambda self, batch: (_ for _ in ()).throw(UserError("too many"))
try:
    next(batches)
except UserError as error:
    kept = error
"""
RANK = """
import sys
import time
from pathlib import Path
from streams import readable, stream
from onediff.data.cursor import Cursor
from onediff.data.loader import read_batches
made = stream({Path(sys.argv[1]): 1.0}, 4)
batches = read_batches(made, 4, Cursor.start(range(4)), 1, 2, 1.0)
next(batches)
import multiprocessing
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


def ended_rank(folder: Path, end: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """A rank with one data worker that ends as `end` says, and the worker's id."""
    path = os.pathsep.join(str(path) for path in (SUPPORT, HOUSE))
    ended = subprocess.run(
        [sys.executable, "-c", RANK + end, str(folder)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return ended, int(ended.stdout)


def is_gone(process: int) -> bool:
    """Whether a process ends within a minute."""
    for _ in range(600):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_an_uncaught_exception_ends_the_rank_and_its_workers(tmp_path):
    """Workers ignore SIGTERM, with which multiprocessing would end them at exit, and then wait forever."""
    folder = write_set(tmp_path / "texts", [60])
    ended, worker = ended_rank(folder, 'raise RuntimeError("out of memory")')
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("RuntimeError: out of memory")
    assert is_gone(worker)


def test_a_stored_exception_does_not_keep_the_rank_alive(tmp_path):
    """Its frames hold the workers, although the generator is closed."""
    folder = write_set(tmp_path / "texts", [60])
    ended, worker = ended_rank(folder, KEPT)
    assert ended.returncode == 0, ended.stderr
    assert is_gone(worker)


def test_a_killed_rank_takes_its_workers_with_it(tmp_path):
    folder = write_set(tmp_path / "texts", [60])
    ended, worker = ended_rank(folder, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.returncode == -9
    assert is_gone(worker)


@pytest.mark.parametrize("pack", [None, 100])
def test_every_worker_makes_rows_for_any_size_of_the_micro_batch(tmp_path, monkeypatch, pack):
    """One lane and micro-batches of one row: three workers make those of three steps at once, in their order."""
    folders = {write_set(tmp_path / "pairs", [60], "pair", {5: "bad_image", 9: "bad_json"}): 1.0}
    made = stream(folders, 1, pack=pack)

    def first_rows(workers: int) -> tuple[list[tuple[str, ...]], set[str], dict]:
        read = list(islice(read_batches(made, 1, Cursor.start([0]), workers, 2, 1.0), 15))
        ids = [batch.info["ids"][0] for batch, _ in read]
        told = [tuple(word for word in row if not word.startswith("made by")) for row in ids]
        return told, {word for row in ids for word in row if word.startswith("made by")}, read[-1][1].lanes

    def one(self, lane, index):
        row = whole(self, lane, index)
        row.ids = (*row.ids, f"made by {os.getpid()}")
        return row

    whole = Stream.one
    monkeypatch.setattr(Stream, "one", one)
    in_turn, _, end = first_rows(0)
    at_once, makers, same_end = first_rows(3)
    assert at_once == in_turn and same_end == end
    assert len(makers) == 3
