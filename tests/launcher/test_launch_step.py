"""Why srun started nothing, from what it says: lines of Slurm 22.05.8 as they were printed."""

import pytest

from launcher.again import all_excluded, fewer_nodes
from launcher.record import Attempt
from launcher.rules import INTERRUPTIONS, Rule, decide
from launcher.step import why_not_started

MISSPELT = ["srun: unrecognized option '--mem-bnid=x'"]
FINAL = [
    MISSPELT,
    ["srun: error: Invalid --distribution specification"],
    ["srun: error: Unable to create step for job 1: Memory required by task is not available"],
    ["srun: error: Unable to create step for job 1: More processors requested than permitted"],
    ["srun: error: Unable to create step for job 1: Invalid generic resource (gres) specification"],
    ["srun: fatal: SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are mutually exclusive."],
    ['srun: error: unrecognized --cpu-bind argument "foo"', "srun: fatal: Failed to parse --cpu-bind= values."],
    [
        "srun: error: cannot find mpi plugin for mpi/foo",
        "srun: error: Invalid MPI type 'foo', --mpi=list for acceptable types",
    ],
    ["srun: error: Only allocated 2 nodes asked for 4"],
]
PASSING = [
    ["srun: error: Unable to confirm allocation for job 5: Unable to contact slurm controller (connect failure)"],
    ["srun: error: Unable to create step for job 5: Socket timed out on send/recv operation"],
    ["srun: Job 5 step creation temporarily disabled, retrying (Requested nodes are busy)"],
    ["srun: error: Unable to create step for job 5: Zero Bytes were transmitted or received"],
]


@pytest.mark.parametrize("said", FINAL)
def test_what_srun_would_say_again_is_final(said):
    refusal = why_not_started(1, said)
    assert refusal.final and not refusal.passes and not refusal.nodes and "error: " not in refusal.words


@pytest.mark.parametrize("said", PASSING)
def test_what_passes_is_tried_again(said):
    refusal = why_not_started(1, said)
    assert refusal.passes and not refusal.final and not refusal.nodes


def test_a_step_that_began_was_not_refused_and_a_node_is_named_only_by_srun():
    assert why_not_started(0, []) is None
    assert why_not_started(2, ["srun: error: node2: task 1: Exited with exit code 2"]) is None
    assert why_not_started(143, ["srun: error: node1: tasks 0-1: Terminated"]) is None
    unknown = why_not_started(1, ["srun: error: something new"])
    assert (unknown.passes, unknown.final, unknown.words) == (False, False, "srun: something new")
    one = why_not_started(
        1, ["srun: error: Task launch for StepId=5.0 failed on node node2: Communication connection failure"]
    )
    assert one.nodes == ("node2",) and not one.passes
    pyxis = why_not_started(255, ["srun: unrecognized option '--container-image=x'"])
    assert pyxis.final and pyxis.words.endswith("pyxis is not installed on this cluster")


def test_exclusions_add_up_and_too_few_nodes_are_seen():
    assert all_excluded({"ExcNodeList": "n[3-4],m1"}, ["n1"]) == ["m1", "n1", "n3", "n4"]
    assert all_excluded({"ExcNodeList": "(null)"}, ["n1"]) == ["n1"] and all_excluded({}, []) == []
    part = {"nodes": [3, 3], "tasks_per_node": 2, "tensor": 1, "batch": [24, 1]}
    assert fewer_nodes(["n1", "n2", "n3", "n4"], ["n1"], part) is None
    assert fewer_nodes(["n1", "n2", "n3"], ["n1"], part) == 2
    assert fewer_nodes(["n1", "n2", "n3", "n4"], ["n1"], {**part, "spares": 1}) == 3, "without the spare"
    assert fewer_nodes(["n1", "n2", "n3"], ["n1"], {**part, "tensor": 6}) == 0
    assert fewer_nodes(["n1"], ["n1"], {**part, "nodes": [1, 1]}) == 0


def test_what_srun_refuses_ends_the_run_and_signals_from_outside_do_not():
    rule = Rule(restarts_without_progress=3, node_failures=2)

    def ends(cause: str, count: int) -> list[Attempt]:
        return [Attempt(n, "7", ["a"], 2, 0.0, 5, 1.0, 5, cause, 1, cause) for n in range(count)]

    refused = decide(ends("refused", 1), rule)
    assert refused.action == "fail" and "look at `srun` and `sbatch` in the profile" in refused.why
    assert decide(ends("interrupted", INTERRUPTIONS - 1), rule).action == "requeue"
    assert decide(ends("interrupted", INTERRUPTIONS), rule).action == "fail"
    assert decide(ends("stopped", INTERRUPTIONS - 1), rule).action == "requeue", "warned while they loaded"
    assert decide(ends("stopped", INTERRUPTIONS), rule).action == "fail"
    assert decide([*ends("interrupted", 9), *ends("crash", 3)], rule).action == "requeue"
