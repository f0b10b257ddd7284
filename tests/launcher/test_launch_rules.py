"""Judgement without Slurm: notes to causes, attempts to decisions, profiles, partitions, the shape of 512 nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_runs import HOUSE, Launched

from launcher.outcome import judge, sum_verdict
from launcher.preflight import disk_faults, gpu_faults, memory_faults, verdict
from launcher.profile import ClusterProfile, load_profile, profile_folders
from launcher.record import Attempt, Record, write_json
from launcher.rules import Rule, bad_nodes, decide, usable_nodes, without_progress
from launcher.slurm import gpus_in, minutes, refusal
from onediff.config.section import validated
from onediff.data.manifest import build_manifest, write_manifest
from onediff.errors import UserError

RULE = Rule(restarts_without_progress=2, node_failures=2)


def attempt(number: int, cause: str, first: int, last: int, blamed=(), nodes=("a", "b")) -> Attempt:
    made = Attempt(number, "1", list(nodes), 4, 0.0, first)
    made.ended, made.last_step, made.cause, made.reason, made.blamed = (
        1.0,
        last,
        cause,
        f"because {number}",
        list(blamed),
    )
    return made


def note(rank: int, code: int, node: str = "a", ended: float = 1.0, last=()) -> dict:
    return {"rank": rank, "node": node, "code": code, "ended": ended, "log": f"{rank}.log", "last": list(last)}


def test_progress_is_judged_by_steps_never_reached_before():
    going = [attempt(1, "crash", 0, 57), attempt(2, "crash", 57, 60)]
    assert decide(going, RULE).action == "requeue" and without_progress(going) == 0
    stuck = [*going, *(attempt(n, "crash", 60, 60) for n in (3, 4))]
    assert decide(stuck, RULE).action == "requeue" and without_progress(stuck) == 2
    ended = decide([*stuck, attempt(5, "crash", 60, 60)], RULE)
    assert ended.action == "fail" and "3 attempts in a row without progress (step 60)" in ended.why


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["crash", "hang", "vanished", "stopped"]), st.integers(0, 30)), min_size=1))
def test_no_run_is_queued_again_for_ever(ends):
    """Whatever happens, restarts are bounded by the steps there are and the restarts that each may cost."""
    attempts, furthest = [], 0
    for number, (cause, step) in enumerate(ends):
        furthest, first = max(furthest, step), furthest
        attempts.append(attempt(number, cause, first, furthest))
        if decide(attempts, RULE).action == "fail":
            break
    assert len(attempts) <= (30 + 1) * (RULE.restarts_without_progress + 1) + 1
    if without_progress(attempts) > RULE.restarts_without_progress:
        assert decide(attempts, RULE).action == "fail"


def test_causes_that_a_restart_cannot_mend():
    assert decide([attempt(1, "not a number", 0, 50)], RULE).action == "fail"
    assert decide([attempt(1, "bad input", 0, 0)], RULE).action == "fail"
    assert decide([attempt(1, "bad input", 0, 40)], RULE).action == "requeue", "the input was good before: the node?"
    assert decide([attempt(1, "cancelled", 0, 40)], RULE).action == "fail"
    assert decide([attempt(1, "finished", 0, 40)], RULE).action == "done"


def test_nodes_are_excluded_at_once_by_a_preflight_and_at_the_second_end_otherwise():
    first = [attempt(1, "crash", 0, 5, ["b"])]
    assert decide(first, RULE).exclude == []
    assert decide([*first, attempt(2, "hang", 5, 9, ["b"])], RULE).exclude == ["b"]
    assert decide([attempt(1, "bad node", 0, 0, ["a"])], RULE).exclude == ["a"]
    assert bad_nodes([*first, attempt(2, "bad node", 5, 5, ["c"])], RULE) == ["c"]
    alone = attempt(1, "bad node", 0, 0, ["a"], nodes=["a"])
    assert decide([alone], RULE).exclude == ["a"], "a run on one node goes elsewhere, too"
    everywhere = decide([alone, attempt(2, "bad node", 0, 0, ["b", "c"], nodes=["b", "c"])], RULE)
    assert everywhere.action == "fail" and "every node" in everywhere.why


def test_the_first_rank_that_failed_is_the_cause():
    notes = [note(3, 137, "b", 1.0), note(0, 143, "a", 2.0), note(1, 1, "a", 2.0), note(2, 143, "b", 2.1)]
    outcome = judge(notes, ["a", "b"], 4, False, {})
    assert outcome.cause == "crash" and outcome.blamed == ("b",) and outcome.log == "3.log"
    assert outcome.reason.startswith("rank 3 on b was ended by SIGKILL")


@pytest.mark.parametrize(
    ("code", "last", "cause", "words"),
    [
        (2, ["x", "onediff: error: a.tar: no such shard", "later"], "bad input", "a.tar: no such shard"),
        (3, ["loss is NaN"], "not a number", "loss is NaN"),
        (1, ["torch.OutOfMemoryError: CUDA out of memory."], "crash", "out of memory; lower micro_batch"),
        (1, ["OSError: [Errno 28] No space left on device"], "crash", "storage"),
        (1, ["RuntimeError: x"], "crash", "ended with exit code 1: RuntimeError: x"),
        (134, ["terminate called"], "crash", "was ended by SIGABRT"),
    ],
)
def test_causes(code, last, cause, words):
    outcome = judge([note(0, code, last=last), note(1, 143, ended=2.0)], ["a"], 2, False, {})
    assert outcome.cause == cause and words in outcome.reason


def test_a_rank_that_lost_its_peer_is_not_the_cause():
    lost = note(0, 1, "a", 1.0, ["RuntimeError: Connection closed by peer [10.0.0.1]:4242"])
    cause = note(3, 1, "b", 1.5, ["ValueError: the reason"])
    outcome = judge([lost, note(1, 143, "a", 1.2), cause, note(2, 143, "b", 1.6)], ["a", "b"], 4, False, {})
    assert outcome.reason == "rank 3 on b ended with exit code 1: ValueError: the reason" and outcome.blamed == ("b",)
    assert "closed by peer" in judge([lost, note(1, 143, "a", 1.2)], ["a"], 2, False, {}).reason


def test_other_ends():
    both = [note(0, 75), note(1, 75)]
    assert judge(both, ["a"], 2, False, {"reason": "SIGUSR1"}).cause == "stopped"
    good = [note(0, 0), note(1, 0)]
    assert judge(good, ["a"], 2, True, {}).cause == "finished"
    assert judge(good, ["a"], 2, False, {}).cause == "crash", "exit codes of 0 do not finish a phase"
    assert "rank 1 and 0 more ended without a trace" in judge([note(0, 0)], ["a"], 2, False, {}).reason


def test_a_node_that_fell_silent_is_lost_unless_a_rank_elsewhere_gives_the_reason():
    """Slurm silently kills what is left of a step: the silence that follows a failure is not a failure."""
    survivors = [note(0, 143), note(1, 1, last=["RuntimeError: Connection reset by peer"])]
    lost = judge(survivors, ["a", "b"], 4, False, {})
    assert lost.blamed == ("b",) and "node failure" in lost.reason
    killed = [note(0, 143), note(1, 137)]
    assert judge(killed, ["a", "b"], 4, False, {}).blamed == ("a",)
    assert "rank 1 on a was ended by SIGKILL" in judge(killed, ["a", "b"], 4, False, {}).reason
    assert judge(killed, ["a", "b", "c"], 6, False, {}, lambda silent: silent[1:]).blamed == ("c",), "Slurm knows"


def test_a_rank_killed_with_what_watches_over_it_blames_no_node_that_srun_still_hears():
    ended = [{**note(0, 143, "a"), "told": "SIGTERM"}]
    killed = judge(ended, ["a", "b"], 2, False, {}, heard={"b"})
    assert killed.cause == "crash" and not killed.blamed and "rank 1 and 0 more ended without a trace" in killed.reason
    assert judge(ended, ["a", "b"], 2, False, {}).blamed == ("b",), "nobody hears of b"


def test_usable_nodes():
    assert usable_nodes(8, 8, 1, 64, 1) == 8
    assert usable_nodes(7, 8, 1, 64, 1) == 4, "of seven nodes four can share 64 rows"
    assert usable_nodes(3, 2, 1, 8, 1) == 2
    assert usable_nodes(1, 8, 16, 64, 1) == 0, "one node cannot hold a tensor group of sixteen"
    assert usable_nodes(2, 8, 16, 64, 4) == 2


def test_512_nodes_have_a_status_and_a_judgement(tmp_path):
    nodes = [f"n{index:03d}" for index in range(512)]
    notes = [note(rank, 0, nodes[rank // 8]) for rank in range(4096)]
    assert judge(notes, nodes, 4096, True, {}).cause == "finished"
    without = [entry for entry in notes if entry["node"] != "n300"]
    assert judge(without, nodes, 4096, False, {}).blamed == ("n300",)
    record = Record(tmp_path)
    write_json(record.plan_file, {"phases": {"one": {}}})
    write_json(tmp_path / "status.json", {"phase": "one", "step": 50, "steps_total": 100, "loss": 1.5})
    last = attempt(1, "crash", 0, 50, nodes=nodes)
    last.action, last.tasks = "fail", 4096
    record.write_attempts("one", [last])
    from launcher.follow import phase_states, table

    (state,) = phase_states(record)
    assert (state.state, state.nodes, state.step, state.steps_total) == ("failed", 512, 50, 100)
    assert "50 of 100" in table([state]) and "because 1" in table([state])


def test_preflight_faults(tmp_path, monkeypatch):
    assert "/no/such: No such file" in disk_faults(Path("/no/such"), 0)[0]
    assert disk_faults(tmp_path, 0) == [] and "GiB free" in disk_faults(tmp_path, 1e9)[0]
    assert memory_faults(0) == [] and "of memory available" in memory_faults(1e9)[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert gpu_faults(0) == [] and gpu_faults(4) == ["Slurm assigned 3 of 4 GPUs"]
    way = {"node": "a", "faults": ["no connection to b"], "suspect": "b"}
    assert verdict([way, {"node": "c", "faults": []}], ["a", "b", "c"]) == {
        "b": "did not answer the pre-flight check in time"
    }
    assert set(verdict([way, {"node": "b", "faults": []}], ["a", "b"])) == {"b"}
    assert verdict([{"node": "a", "faults": ["disk"]}], ["a"]) == {"a": "disk"}


def test_nodes_whose_ranks_cannot_sum():
    good = [note(0, 0, "a"), note(1, 0, "a")]
    peer = note(3, 1, "b", 1.0, ["RuntimeError: Connection closed by peer"])
    assert sum_verdict([*good, note(2, 1, "b", 2.0, ["ImportError: libcuda"]), peer], ["a", "b"], 4) == {
        "b": "all-reduce: ImportError: libcuda"
    }
    assert sum_verdict([*good, note(2, 0, "b")], ["a", "b"], 4) == {"b": "all-reduce: no answer in time"}
    assert sum_verdict([*good, note(2, 0, "b"), note(3, 0, "b")], ["a", "b"], 4) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 30),
        ("1:00:00", 60),
        ("90:30", 91),
        ("2-00:00:00", 2880),
        ("1-2", 1560),
        ("1-2:30", 1590),
        ("infinite", None),
    ],
)
def test_times(text, expected):
    assert minutes(text) == expected


def test_words_of_slurm():
    assert gpus_in("gpu:h100:8(S:0-1)") == 8 and gpus_in("gpu:a:2,gpu:b:4") == 6 and gpus_in("(null)") == 0
    assert refusal("sbatch: error: Bad\nsbatch: error: Bad\nsbatch: error: Worse") == "Bad; Worse"


def test_shipped_profiles_load():
    for name in ("plain", "infiniband", "efa", "local"):
        assert load_profile(name).description
    assert load_profile("local").scheduler == "local"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "gpus_per_node"),
        ({"gpus_per_node": 8, "partiton": "x"}, "did you mean 'partition'"),
        ({"gpus_per_node": 8, "time_limit": "0"}, "at least one minute"),
        ({"gpus_per_node": 8, "environment": {"A B": "x"}}, "'A B' is not a valid variable name"),
        ({"gpus_per_node": 8, "environment": {"A": "x\ny"}}, "the value must be one line"),
        ({"gpus_per_node": 8, "requeue": {"hang_minuts": 3}}, "did you mean 'hang_minutes'"),
    ],
)
def test_wrong_profiles(values, words):
    with pytest.raises(UserError, match=words) as caught:
        validated(ClusterProfile, values, "p.yaml")
    assert str(caught.value).startswith("p.yaml: ")


def test_profiles_are_found_nearest_first(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert profile_folders(tmp_path / "run")[:2] == [tmp_path / "run", tmp_path / "config" / "onediff"]
    (tmp_path / "config" / "onediff").mkdir(parents=True)
    (tmp_path / "config" / "onediff" / "plain.yaml").write_text("gpus_per_node: 3")
    assert load_profile("plain").gpus_per_node == 3
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plain.yaml").write_text("gpus_per_node: 5")
    assert load_profile("plain", tmp_path / "run").gpus_per_node == 5


BLOCKED = """
import sys
OWN = {"onediff", "launcher", "data_prep", "numpy", "yaml", "_yaml", "pydantic", "pydantic_core", "annotated_types"}
OWN |= {"typing_extensions", "typing_inspection"}  # pydantic's
class Absent:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in OWN and top not in sys.stdlib_module_names and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
for name in [name for name in sys.modules if name.partition(".")[0] not in OWN | sys.stdlib_module_names | {"__main__"}]:
    del sys.modules[name]
from onediff.cli import main
run = ["run.yaml", "--profile", "plain"]
codes = [
    main(["launch", "submit", *run, "--nodes", "2", "--dry-run"]),
    main(["launch", "submit", "run.yaml", "--profile", sys.argv[1]]),
    main(["launch", "sweep", *run, "optimizer.lr=1e-3,1e-4", "--dry-run"]),
    *(main(["launch", word, "runs/tiny"]) for word in ("status", "explain", "logs", "cancel", "resume")),
    main(["launch", "doctor", *run[1:]]),
    main(["launch", "--help"]),
]
print(codes)
"""


def test_the_commands_work_where_only_their_own_packages_are(tmp_path):
    """No torch, transformers, pillow or mlflow: a login node has pydantic, a YAML reader and numpy."""
    run = Launched(tmp_path / "home")
    run.profile |= {"scheduler": "local", "tasks_per_node": 1}
    run.config["phases"] = {"one": {"mix": {"pairs": 1}, "steps": 2, "global_batch": 32, "micro_batch": 1}}
    run.write()
    write_manifest(build_manifest(run.home / "data" / "train"))
    env = {**os.environ, "PATH": "/nowhere", "PYTHONPATH": str(HOUSE)}
    words = [sys.executable, "-c", BLOCKED, str(run.home / "profile.yaml")]
    done = subprocess.run(words, cwd=run.home, capture_output=True, text=True, env=env)
    # The phases end at once here, and without Slurm there is nothing to check or to cancel.
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 0, 0, 0, 2, 0]", done.stderr + done.stdout
    assert "sbatch: not found on PATH" in done.stderr


def test_the_supervisor_needs_only_the_standard_library():
    """It runs outside the container, where nothing may be installed."""
    modules = "launcher.job, launcher.task, launcher.preflight, launcher.keeper"
    program = f"import sys; import {modules}; print(sorted(sys.modules))"
    house = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=house, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.dumps("pydantic") not in done.stdout.replace("'", '"')
