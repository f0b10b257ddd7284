"""A run whose gradients are not finite stops and names the samples; one that spikes goes back and past them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

import forked
import pytest
from places import SUPPORT
from processes import end, start_ranks
from small_run import config, metrics, onediff, overrides, render
from streams import row_at

from onediff.training.checkpoint import latest_checkpoint, read_manifest, verify_checkpoint
from onediff.training.data import phase_stream, processor_before_training

STEPS, ROWS, PHASE = 9, 4, "warm-up"
MORE = {
    "phases.warm-up.checkpoint_every": 3,
    "phases.warm-up.keep_checkpoints": 9,
    "training.sample_captions": 0,
}
SPIKES = ["training.bad_steps.spikes.median_of=4", "training.bad_steps.spikes.in_a_row=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("data"), pairs=20, singles=120)


@pytest.fixture(scope="module")
def order(data: Path) -> list[list[str]]:
    """Ids of the samples that each step would read, from the first step on."""
    settings = config(data, STEPS, **MORE)
    processor, _ = processor_before_training(settings, "demo", data / "a run to come")
    stream = phase_stream(settings.data, settings.phases[PHASE], processor)
    return [[row_at(stream, lane, index).ids[0] for lane in range(ROWS)] for index in range(20)]


def command(run: Path, data: Path, spec: dict, *words: str) -> list[str]:
    settings = overrides(data, STEPS, **MORE)
    return [json.dumps(spec), "train", "configs/demo.yaml", *settings, "--run", str(run), "--phases", PHASE, *words]


def poisoned(run: Path, data: Path, spec: dict, *words: str) -> subprocess.CompletedProcess[str]:
    """One process of a run that goes wrong where `spec` says."""
    script = [str(SUPPORT / "poisoned_train.py"), *command(run, data, spec, *words)]
    return forked.run(script, {**os.environ, "OMP_NUM_THREADS": "1"}, 600)


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / f"phase-{PHASE}" / "bad-steps.jsonl").read_text().splitlines()]


def test_a_bad_sample_is_passed_over_and_too_many_steps_of_them_stop_all_ranks_naming_theirs(data, order, tmp_path):
    """Step 5 reads one bad sample and is skipped; steps 7 to 9 read some on the second rank, which is one too many."""
    run, logs = tmp_path / "run", tmp_path / "logs"
    logs.mkdir()
    bad = [order[4][0], *(order[step][3] for step in range(6, 9))]
    words = command(run, data, {"nan": bad}, "training.bad_steps.skipped_in_a_row=2", "parallel.zero_stage=0")
    ranks = start_ranks(SUPPORT / "poisoned_train.py", words, 2, logs)
    try:
        assert [rank.wait(300) for rank in ranks] == [3, 3], (logs / "rank-0.log").read_text()[-3000:]
    finally:
        end(ranks)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed"
    assert "3 steps in a row (training.bad_steps.skipped_in_a_row 2), the last one step 9" in status["reason"]
    assert "micro-batch 1 of rank 1 causes it, the only one of the 2 in the step" in status["reason"]
    # The good checkpoint is the latest.
    folder = run / "checkpoints" / f"phase-{PHASE}"
    assert latest_checkpoint(folder).name == "step-00000006"
    assert verify_checkpoint(latest_checkpoint(folder)).extra["bad_steps"]["skipped"] == 1
    skipped = metrics(run, PHASE, "skipped_steps")
    assert [skipped[step] for step in range(4, 10)] == [0, 1, 1, 2, 3, 4]
    lines = (run / "tracking" / f"phase-{PHASE}.jsonl").read_text()
    assert "NaN" not in lines and "Infinity" not in lines
    assert [event["step"] for event in events(run)] == [5, 7, 8, 9]
    assert "step 5: gradients are not finite, so the step is skipped" in (run / "logs" / "train.rank0.log").read_text()
    # The command shows those samples.
    told = re.search(r"look at its samples: onediff (data show .*)", status["reason"])
    shown = onediff([*shlex.split(told[1]), "--out", str(tmp_path / "sheet.png")])
    assert shown.returncode == 0, shown.stderr
    assert order[8][3] in shown.stdout and order[8][1] in shown.stdout and order[8][0] not in shown.stdout
    assert (tmp_path / "sheet.png").is_file()


@pytest.fixture(scope="module")
def spike(order: list[list[str]]) -> dict:
    """The samples of steps 7 and 8 spoil the loss."""
    return {"spike": [order[step][0] for step in (6, 7)], "times": 100.0}


@pytest.fixture(scope="module")
def spiked(data: Path, spike: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that met it, and what it said."""
    run = tmp_path_factory.mktemp("spiked") / "run"
    done = poisoned(run, data, spike, *SPIKES)
    assert done.returncode == 0, done.stderr
    return run, done.stderr


def test_a_spike_goes_back_and_passes_over_its_samples(spiked):
    run, said = spiked
    assert "2 bad steps in a row, the last one step 8: loss " in said and "rolling back to step 6" in said
    assert [(event["kind"], event["from_step"], event["to_step"]) for event in events(run)] == [("rollback", 8, 6)]
    back = read_manifest(latest_checkpoint(run / "checkpoints" / f"phase-{PHASE}")).extra
    # The data went on behind step 9, which was under way: steps 7 to 9 learned from the samples of steps 10 to 12.
    assert back["step"] == STEPS and back["position"]["cursors"] == [[12]] * ROWS
    assert [passed["cursors"] for passed in back["bad_steps"]["rollbacks"]] == [[[[6]] * ROWS, [[9]] * ROWS]]
    losses = metrics(run, PHASE)
    assert max(losses.values()) < 3 * min(losses.values()), "no step of the spike is left"


def spoil(shard: Path, id: str) -> None:
    """Overwrites the start of a sample's image."""
    with tarfile.open(shard) as tar:
        members = {member.name: member for member in tar.getmembers()}
        records = {name: json.load(tar.extractfile(name)) for name in members if name.endswith(".json")}
    key = next(name for name, record in records.items() if record["id"] == id).removesuffix("json")
    image = next(member for name, member in members.items() if name.startswith(key) and name not in records)
    with shard.open("r+b") as file:
        file.seek(image.offset_data)
        file.write(bytes(100))


def test_an_unreadable_sample_of_a_step_that_a_way_back_drops_is_counted_like_any_other(data, order, spike, tmp_path):
    """Step 9 is under way when step 8 turns out to be a spike, so nobody reads its metrics."""
    folder, run = shutil.copytree(data, tmp_path / "data"), tmp_path / "run"
    (shard,) = (folder / "singles" / "train").glob("*.tar")
    spoil(shard, order[8][1])
    done = poisoned(run, folder, spike, *SPIKES)
    assert done.returncode == 0 and "rolling back to step 6" in done.stderr, done.stderr
    assert metrics(run, PHASE, "skipped_samples")[STEPS] == metrics(run, PHASE, "skipped/bad_image")[STEPS] == 1


@pytest.mark.long
def test_a_run_that_is_resumed_from_the_checkpoint_that_it_went_back_to_is_exact(spiked, data, spike, tmp_path):
    """As if killed behind the way back, before another checkpoint."""
    run, _ = spiked
    killed = shutil.copytree(run, tmp_path / "killed")
    for late in (killed / "checkpoints" / f"phase-{PHASE}").glob("step-00000009"):
        shutil.rmtree(late)
    (killed / f"phase-{PHASE}" / "finished.json").unlink()
    done = poisoned(killed, data, spike, *SPIKES, "--resume")
    assert done.returncode == 0, done.stderr
    assert "continues from step 6" in done.stderr and "rolling back" not in done.stderr
    for name in ("loss", "grad_norm", "targets"):
        assert metrics(killed, PHASE, name) == metrics(run, PHASE, name)


@pytest.mark.long
def test_a_run_that_is_killed_behind_its_way_back_repeats_the_same_numbers(data, order, tmp_path):
    """By SIGKILL in step 8, which it has taken for the second time, two micro-batches a step; the journal holds both."""
    spec = {"spike": [order[step][0] for step in (6, 7)], "times": 100.0}
    for name, more in (("whole", {}), ("killed", {"die": 2 * (9 + 2)})):
        done = poisoned(tmp_path / name, data, spec | more, *SPIKES)
    assert done.returncode == -signal.SIGKILL and max(metrics(tmp_path / "killed", PHASE)) <= 8
    assert [event["kind"] for event in events(tmp_path / "killed")] == ["rollback"]
    done = poisoned(tmp_path / "killed", data, spec, *SPIKES, "--resume")
    assert done.returncode == 0 and "continues from step 6" in done.stderr, done.stderr
    for name in ("loss", "grad_norm", "targets"):
        assert metrics(tmp_path / "killed", PHASE, name) == metrics(tmp_path / "whole", PHASE, name)


@pytest.mark.long
def test_a_spike_that_comes_back_stops_the_run(data, order, tmp_path):
    spec = {"spike": [name for step in range(6, 20) for name in order[step]], "times": 100.0}
    done = poisoned(tmp_path / "run", data, spec, *SPIKES, "training.bad_steps.spikes.rollbacks=1")
    assert done.returncode == 3, done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert "the phase was already rolled back 1 times" in status["reason"]
    assert latest_checkpoint(tmp_path / "run" / "checkpoints" / f"phase-{PHASE}").name == "step-00000006"
