"""When a slow node is replaced: confirmed by comparisons in a row, and only if there is a spare."""

import pytest

from launcher.record import Attempt
from launcher.rules import Decision, Rule, nodes_here
from launcher.sections import as_beat
from launcher.slow import SlowNode

RULE = Rule(restarts_without_progress=3, node_failures=2, slow_share=0.2, slow_times=3)
NODES = ["a", "b", "c"]


def looks(compared: list[tuple[int, int, float]], rule: Rule = RULE, spares: tuple[str, ...] = ("d",)) -> list:
    """What is found after each comparison: its step, the slowest rank of six on three nodes, its lag."""
    slow = SlowNode(Attempt(1, "7", NODES, 6, 0.0, 0), rule, spares)
    beats = [{"step": step, "rank": rank, "share": share, "by": "network"} for step, rank, share in compared]
    return [slow.look(as_beat({"phase": "one", "section": "step", "slowest": slowest}, "one")) for slowest in beats]


def test_a_node_is_named_when_as_many_comparisons_in_a_row_find_one_of_its_ranks_slow():
    found = looks([(20, 2, 0.3), (40, 3, 0.5), (40, 3, 0.5), (40, 3, 0.5), (60, 2, 0.25)])
    assert found[:4] == [None] * 4, "a comparison that is read again counts once"
    assert found[4] == (
        "b",
        "rank 2 on b was at least 25 % slower than the median rank in 3 comparisons in a row (network)",
    )


@pytest.mark.parametrize(
    "compared",
    [
        [(20, 2, 0.3), (40, 2, 0.1), (60, 2, 0.3), (80, 2, 0.3)],
        [(20, 2, 0.3), (40, 2, 0.3), (60, 5, 0.3), (80, 2, 0.3)],
    ],
    ids=["fast again", "another node"],
)
def test_a_row_that_breaks_starts_over(compared):
    assert looks(compared) == [None] * 4


def test_nothing_is_done_without_a_spare_or_where_the_profile_says_so():
    compared = [(step, 2, 0.9) for step in (20, 40, 60, 80)]
    assert looks(compared, spares=()) == [None] * 4
    assert looks(compared, Rule(3, 2, slow_share=None)) == [None] * 4
    assert looks(compared)[2] is not None


def test_a_slow_node_is_used_again_before_the_job_is_queued_again():
    attempts = [Attempt(1, "7", NODES, 6, 0.0, 0, cause="slow node", blamed=["b"])]
    part = {"nodes": [3, 3], "tasks_per_node": 2, "tensor": 1, "batch": [12, 1]}
    here = nodes_here(Decision("requeue", "slow"), attempts, ["a", "b", "c", "d"], part)
    assert here == ["a", "c", "d", "b"]
    attempts.append(Attempt(2, "7", ["a", "c", "d"], 6, 0.0, 0, cause="crash", blamed=["d"]))
    assert nodes_here(Decision("requeue", "died", ["d"]), attempts, ["a", "b", "c", "d"], part) == ["a", "c", "b"]
