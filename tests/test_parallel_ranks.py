"""The beginning of a process group."""

from pathlib import Path

from processes import run_ranks


def test_the_others_wait_for_what_rank_zero_does_first_longer_than_for_a_collective(tmp_path):
    """As long as an export of large weights takes."""
    run_ranks(Path(__file__).with_name("first_worker.py"), [str(tmp_path)], 2, timeout=120)
