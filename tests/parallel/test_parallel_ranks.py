"""Creating process groups."""

from places import SUPPORT
from processes import run_ranks


def test_the_others_wait_for_what_rank_zero_does_first_longer_than_for_a_collective(tmp_path):
    """For example, for as long as an export of large weights takes."""
    run_ranks(SUPPORT / "first_worker.py", [str(tmp_path)], 2, timeout=300)
    assert (tmp_path / "done").read_text() == "done"
