"""The loader: the same global batches at any number of ranks and workers, and on resuming anywhere."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from streams import global_batches, stream, write_set

from onediff.data.loader import Loader, Share
from onediff.data.position import Position, order_of
from onediff.errors import UserError

LANES = 8


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Three sources of uneven shards, some samples bad: pairs, single images, texts."""
    folder = tmp_path_factory.mktemp("sets")
    return {
        write_set(folder / "pairs", [1, 23, 4], "pair", {5: "bad_picture", 6: "missing_half", 20: "bad_json"}): 2.0,
        write_set(folder / "singles", [9, 17], "single", {0: "too_many_pixels", 25: "bad_picture"}): 1.0,
        write_set(folder / "texts", [3, 1, 1, 40], "text", {44: "bad_json"}): 1.0,
    }


@pytest.fixture(scope="module")
def unbroken(mixed):
    """Sixty global batches of one rank without workers, and where each ends."""
    made = stream(mixed, LANES)
    position = Position.start(made, LANES, 8)
    batches, positions = [], [position]
    for _ in range(60):
        (batch,), position = global_batches(made, LANES, position, 1, ranks=1, workers=0)
        batches.append(batch)
        positions.append(position)
    return batches, positions


def test_batches_are_the_rows_of_every_lane_in_turn(mixed, unbroken):
    made = stream(mixed, LANES)
    for lane in range(LANES):
        draw = 0
        for batch in unbroken[0]:
            row = made.row(lane, draw)
            assert batch[lane] == row.ids
            draw = row.next_draw


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_any_number_of_ranks_reads_the_same(mixed, unbroken, ranks, micro_batch):
    if LANES % (ranks * micro_batch):
        return
    made = stream(mixed, LANES)
    start = Position.start(made, LANES, 8)
    batches, end = global_batches(made, LANES, start, 60, ranks, 0, micro_batch)
    assert batches == unbroken[0]
    assert end == unbroken[1][60]


@pytest.mark.parametrize(("ranks", "workers", "micro_batch"), [(1, 1, 4), (1, 3, 2), (2, 3, 4)])
def test_any_number_of_workers_reads_the_same(mixed, unbroken, ranks, workers, micro_batch):
    """Real worker processes; three of them do not divide the micro-batch."""
    made = stream(mixed, LANES)
    stored = json.loads(json.dumps(unbroken[1][7].to_json()))
    position = Position.from_json(stored, order_of(made, LANES, 8))
    batches, end = global_batches(made, LANES, position, 4, ranks, workers, micro_batch)
    assert batches == unbroken[0][7:11]
    assert end == unbroken[1][11]


def test_resuming_at_random_points_with_other_ranks(mixed, unbroken):
    random = np.random.default_rng(0)
    for _ in range(50):
        stop, steps = int(random.integers(0, 55)), int(random.integers(1, 5))
        made = stream(mixed, LANES)
        stored = json.loads(json.dumps(unbroken[1][stop].to_json()))
        position = Position.from_json(stored, order_of(made, LANES, 8))
        batches, end = global_batches(made, LANES, position, steps, int(random.choice([1, 2, 4, 8])), 0)
        assert batches == unbroken[0][stop : stop + steps]
        assert end == unbroken[1][stop + steps]


def test_every_good_sample_once_an_epoch_and_no_bad_one(mixed, unbroken):
    """The third epoch of each source, read lane by lane, is complete."""
    made = stream(mixed, LANES)
    for number, (source, bad) in enumerate(zip(made.sources, ({5, 6, 20}, {0, 25}, {44}), strict=True)):
        seen = Counter()
        for lane in range(LANES):
            first, last = (source.lanes.length(lane) * epoch for epoch in (2, 3))
            draw = 0
            while made.mix.draws(number, lane, draw) < last:
                here, position = made.mix.at(lane, draw)
                row = made.row(lane, draw)
                if here == number and position >= first and row.next_draw == draw + 1:
                    seen.update(row.ids)
                draw += 1
        good = set(range(source.lanes.samples)) - bad
        assert seen == Counter(f"{source.name}/{i}" for i in good)


def test_bad_samples_are_counted_by_kind_and_reported(mixed):
    made = stream(mixed, LANES)
    loader = Loader(made, Share.of_rank(LANES, 8, 0, 1), dict.fromkeys(range(LANES), 0), 0, 2, 1.0)
    batches = iter(loader)
    faults = [fault for _ in range(20) for fault in next(batches).info["skipped"]]
    assert set(loader.skipped) == {"bad_picture", "missing_half", "bad_json", "too_many_pixels"}
    assert loader.skipped == Counter(kind for kind, _ in faults)
    assert loader.read == 20 * LANES + len(faults)
    assert any("part-001.tar sample 4" in where for kind, where in faults if kind == "bad_picture")


def test_too_many_bad_samples_stop_the_run_with_one_line(tmp_path):
    folder = write_set(tmp_path / "texts", [200], faults=dict.fromkeys(range(0, 200, 4), "bad_json"))
    made = stream({folder: 1.0}, LANES)
    loader = Loader(made, Share.of_rank(LANES, 8, 0, 1), dict.fromkeys(range(LANES), 0), 0, 2, 0.1)
    with pytest.raises(
        UserError, match=r"samples are unreadable \(\d+ bad_json\), more than data.bad_share 0.1"
    ) as stop:
        for _, _batch in zip(range(200), loader, strict=False):
            pass
    assert "\n" not in str(stop.value)
    assert loader.read >= 100


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_in_a_row_stop_the_run_with_one_line(tmp_path, workers):
    folder = write_set(tmp_path / "texts", [60], faults=dict.fromkeys(range(60), "bad_json"))
    loader = Loader(stream({folder: 1.0}, 4), Share.of_rank(4, 4, 0, 1), dict.fromkeys(range(4), 0), workers, 2, 1.0)
    with pytest.raises(UserError, match=r"20 unreadable samples in a row.*part-000.tar sample \d+.*data check") as stop:
        next(iter(loader))
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
    folder = write_set(tmp_path / "singles", [11, 1, 20], "single", {7: "bad_picture"})
    made = stream({folder: 1.0}, LANES, couple=True)
    start = Position.start(made, LANES, 8)
    one, end = global_batches(made, LANES, start, 12, ranks=1, workers=0)
    four, same_end = global_batches(made, LANES, start, 12, ranks=4, workers=0)
    assert (one, end) == (four, same_end)
    assert not any("singles/7" in row for batch in one for row in batch)


@pytest.mark.parametrize(("micro_batch", "ranks"), [(3, 1), (8, 2), (1, 3)])
def test_a_batch_that_cannot_be_shared_out(micro_batch, ranks):
    with pytest.raises(UserError, match=f"must be a multiple of {micro_batch * ranks}$"):
        Share.of_rank(8, micro_batch, 0, ranks)


KEPT = """
from onediff.errors import UserError
Loader._count = lambda self, batch: (_ for _ in ()).throw(UserError("too many"))
try:
    next(batches)
except UserError as error:
    kept = error
"""
RANK = """
import sys
import time
from pathlib import Path
from streams import stream
from onediff.data.loader import Loader, Share
made = stream({Path(sys.argv[1]): 1.0}, 4)
batches = iter(Loader(made, Share.of_rank(4, 4, 0, 1), dict.fromkeys(range(4), 0), 1, 2, 1.0))
next(batches)
import multiprocessing
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


def ended_rank(folder: Path, end: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """A rank with one data worker that ends as `end` says, and the worker's id."""
    path = os.pathsep.join(str(Path(__file__).parents[up]) for up in (0, 1))
    ended = subprocess.run(
        [sys.executable, "-c", RANK + end, str(folder)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return ended, int(ended.stdout)


def is_gone(process: int) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_an_uncaught_exception_ends_the_rank_and_its_workers(tmp_path):
    """Workers ignore SIGTERM, with which multiprocessing would end them at exit, and then wait for ever."""
    folder = write_set(tmp_path / "texts", [60])
    ended, worker = ended_rank(folder, 'raise RuntimeError("out of memory")')
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("RuntimeError: out of memory")
    assert is_gone(worker)


def test_an_error_that_is_kept_does_not_keep_the_rank_from_ending(tmp_path):
    """Its frames hold the workers, though the generator is closed."""
    folder = write_set(tmp_path / "texts", [60])
    ended, worker = ended_rank(folder, KEPT)
    assert ended.returncode == 0, ended.stderr
    assert is_gone(worker)


def test_a_killed_rank_takes_its_workers_along(tmp_path):
    folder = write_set(tmp_path / "texts", [60])
    ended, worker = ended_rank(folder, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.returncode == -9
    assert is_gone(worker)
