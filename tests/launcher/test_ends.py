"""Whatever ranks, srun and Slurm leave behind, no node is blamed without evidence of its own, and no word is untrue."""

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import slurm
from launcher.follow import judged
from launcher.outcome import judge, lost_peer
from launcher.record import Attempt
from launcher.rules import Rule, decide, nodes_here

NODES, PER_NODE = ["a", "b", "c"], 2
PEER, OWN, ECC = ["Connection closed by peer"], ["KeyError: 'x'"], ["CUDA error: uncorrectable ECC error encountered"]
ENDS = {  # code, last words, the signal that came before
    "finished": (0, [], None),
    "stopped": (75, [], None),
    "bad input": (2, ["onediff: error: no such shard"], None),
    "not finite": (3, ["loss is nan"], None),
    "own fault": (1, OWN, None),
    "broken GPU": (1, ECC, None),
    "lost peer": (1, PEER, None),
    "aborted by a lost peer": (134, PEER, None),
    "killed": (137, [], None),
    "ended by srun": (143, [], "SIGTERM"),
    "told, then failed": (1, OWN, "SIGTERM"),
}
RANKS = st.lists(st.sampled_from([*ENDS, None]), min_size=6, max_size=6)


def notes_of(ends) -> list[dict]:
    found = []
    for rank, name in enumerate(ends):
        if name is not None:
            code, last, told = ENDS[name]
            node = NODES[rank // PER_NODE]
            found.append(
                {"rank": rank, "node": node, "code": code, "ended": rank, "log": "", "last": last, "told": told}
            )
    return found


@settings(max_examples=1500, deadline=None)
@given(RANKS, st.booleans(), st.booleans(), st.sets(st.sampled_from(NODES)), st.sets(st.sampled_from(NODES)))
def test_a_blamed_node_has_failed_by_itself_or_was_heard_of_no_more(ends, finished, ended, down, heard):
    notes = notes_of(ends)
    outcome = judge(notes, NODES, 6, finished, {}, lambda nodes: [n for n in nodes if n in down], ended, heard)
    assert outcome.reason.strip() and len(outcome.blamed) < len(NODES)
    for node in outcome.blamed:
        own = [note for note in notes if note["node"] == node]
        failed = [note for note in own if note["code"] not in (0, 75, 2, 3) and not lost_peer(note)]
        silent = not own and (node in down or node not in heard)
        assert failed or silent, f"{node} is blamed: {outcome}"
        assert node in outcome.reason, "who is blamed is named"
    if outcome.cause == "finished":
        assert finished and len(notes) == 6 and all(note["code"] == 0 for note in notes)
    if outcome.cause == "stopped":
        assert len(notes) == 6 and all(note["code"] in (0, 75) for note in notes)
    if "fell silent" in outcome.reason:
        assert all(not [note for note in notes if note["node"] == node] for node in outcome.blamed)


@settings(max_examples=300, deadline=None)
@given(RANKS, st.booleans(), st.sets(st.sampled_from(NODES)), st.integers(1, 3))
def test_a_restart_takes_no_node_that_is_gone_or_excluded_and_never_fewer_than_wanted(ends, ended, gone, least):
    outcome = judge(notes_of(ends), NODES, 6, False, {}, lambda nodes: [n for n in nodes if n in gone], ended)
    last = Attempt(1, "7", NODES, 6, 0.0, 0, 1.0, 5, outcome.cause, outcome.exit_code, outcome.reason)
    last.blamed = list(outcome.blamed)
    decision = decide([last], Rule(3, 2))
    part = {"nodes": [least, 3], "tasks_per_node": 2, "tensor": 1, "batch": [12, 1]}
    here = nodes_here(decision, [last], [node for node in NODES if node not in gone], part)
    assert not set(here) & (gone | set(decision.exclude))
    assert not here or (len(here) >= least and decision.action == "requeue" and outcome.cause != "stopped")


class Folder:
    """As much of a run's record as a judgement of its state asks for."""

    def __init__(self, attempts, finished: bool) -> None:
        self.kept, self.done = attempts, finished

    def attempts(self, phase):
        return self.kept

    def finished(self, phase):
        return self.done


STATES = ["PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "CANCELLED", "FAILED", "TIMEOUT", "COMPLETED", "NODE_FAIL"]
ATTEMPT = st.builds(
    lambda cause, action, running: Attempt(
        1, "7", ["a"], 2, 0.0, 0, None if running else 1.0, 3, cause, 1, "a reason", None, [], action
    ),
    st.sampled_from(["crash", "hang", "interrupted", "cancelled", "stopped"]),
    st.sampled_from(["restart", "requeue", "fail"]),
    st.booleans(),
)


@settings(max_examples=500, deadline=None)
@given(st.none() | st.sampled_from(STATES), st.none() | ATTEMPT, st.booleans(), st.booleans())
def test_the_state_of_a_phase_contradicts_neither_slurm_nor_the_folder(listed, last, finished, submitted):
    here = slurm.Job("7", listed, "None", 1) if listed else None
    state, why = judged(Folder([last] if last else [], finished), "one", here, last, submitted or here is not None)
    if finished:
        assert state == "finished"
    elif listed in ("PENDING", "CONFIGURING"):
        assert state == "waiting", "booting or queued, by whomever"
    elif listed in ("RUNNING", "COMPLETING"):
        assert state == "running"
    else:
        assert state != "waiting" or (last is None and here is None)
        assert state != "failed" or why, "an end has its reason"
    assert state in ("finished", "running", "waiting", "failed", "cancelled", "stopped", "not submitted")
