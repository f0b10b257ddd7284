"""How often ranks ask the file system of a checkpoint for something, as docs/parallel.md states it."""

import json
from math import ceil

import pytest
from places import SUPPORT
from processes import run_ranks


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list]:
    """By number of ranks, each rank's operations of a save and of a load; two ranks also load what four have saved."""
    folder = tmp_path_factory.mktemp("counts")
    found = {}
    for world, others in ((4, []), (2, [str(folder / "of-4" / "step-00000003")])):
        out = folder / f"{world}.json"
        run_ranks(SUPPORT / "file_operations_worker.py", [str(folder), str(out), *others], world)
        found[world] = json.loads(out.read_text())
    return found


def test_a_rank_that_saves_creates_its_file_and_only_removing_takes_rank_0_more_with_more_ranks(counts):
    for world, ranks in counts.items():
        saving = [operations[0] for operations in ranks]
        assert saving[1:] == [{"create": 1}] * (world - 1)
        of_zero = {"create": 3, "mkdir": 1, "rename": 3, "open": 4, "list": 3, "stat": 11, "remove": world + 2}
        assert saving[0] == of_zero


def test_a_rank_that_loads_lists_no_folder_and_opens_its_share_of_the_files(counts):
    loads = [(world, world, operations[1]) for world, ranks in counts.items() for operations in ranks]
    loads += [(4, 2, operations[2]) for operations in counts[2]]
    for saved, loading, operations in loads:
        share = ceil(saved / loading)
        assert set(operations) == {"open", "stat"}
        assert 1 + 2 * share < operations["open"] <= 1 + 2 * share + share + 2
        assert operations["stat"] <= operations["open"] + 1
