"""Runs for the tests of the launcher: a small configuration, a profile, and `onediff launch` as a command."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import yaml
from slurm_cluster import SlurmCluster

from launcher.record import Record

TRAINER = Path(__file__).with_name("standin_trainer.py")
HOUSE = Path(__file__).parents[2]
# What a profile needs for the real training instead of the stand-in, and how `pkill -f` finds the ranks of a node.
REAL_TRAINING = {
    "tasks_per_node": 2,
    "command": None,
    "environment": {"OMP_NUM_THREADS": "1"},
    "warn_seconds": 60,
    "time_limit": "60",
    "preflight": {"seconds": 120},
}
RANKS = "^[^ ]+ [^ ]+/launch/code onediff train"


def write_data(folder: Path) -> Path:
    """A data set of one text in two splits, enough for what is checked before a submission."""
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        text = {"id": "0", "source": "t", "task": "text", "captions": ["x"], "split": split, "meta": {}}
        content = json.dumps(text).encode()
        with tarfile.open(folder / split / f"t-{split}-000000.tar", "w") as tar:
            info = tarfile.TarInfo("0.json")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder


class Launched:
    """One run folder below `home`, driven through the command line as a user would."""

    def __init__(self, home: Path, cluster: SlurmCluster | None = None, **wish: object) -> None:
        self.home, self.cluster = home, cluster
        self.run = home / "run"
        self.record = Record(self.run)
        home.mkdir(parents=True, exist_ok=True)
        data = write_data(home / "data")
        phase = {"mix": {"pairs": 1}, "steps": 20, "global_batch": 8, "micro_batch": 1}
        self.config = {
            "name": "tiny",
            "model": "models/tiny",
            "data": {"base": "data/scenes", "sets": {"pairs": str(data), "singles": str(data)}},
            "phases": {"one": phase, "two": phase},
        }
        self.profile = {
            "tasks_per_node": 2,
            "time_limit": "5",
            "warn_seconds": 30,
            "python": sys.executable,
            "command": [sys.executable, str(TRAINER)],
            "environment": {"STANDIN": json.dumps({"steps": 20, **wish})},
            "preflight": {"seconds": 60},
            "requeue": {"hang_minutes": 1, "start_minutes": 2, "fence_seconds": 5},
        }

    def write(self) -> None:
        (self.home / "run.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False))
        (self.home / "profile.yaml").write_text(yaml.safe_dump(self.profile, sort_keys=False))

    def onediff(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """One `onediff launch` command."""
        self.write()
        base = self.cluster.env if self.cluster else os.environ
        return subprocess.run(
            [sys.executable, "-m", "onediff", "launch", *words],
            env={**base, "PYTHONPATH": str(HOUSE), **(env or {})},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def submit(
        self, *words: str, nodes: str = "2", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        profile = str(self.home / "profile.yaml")
        # Building its model to check it takes four seconds of a processor.
        base = ["submit", "run.yaml", "--run", "run", "--profile", profile, "--nodes", nodes, "--no-weights-check"]
        return self.onediff(*base, *words, env=env)

    def submitted(self, *words: str, nodes: str = "2", env: dict[str, str] | None = None) -> dict[str, str]:
        """Submits, and returns the job of each phase."""
        done = self.submit(*words, nodes=nodes, env=env)
        assert done.returncode == 0, done.stderr
        return self.record.latest_jobs()

    def states(self) -> dict[str, dict[str, object]]:
        done = self.onediff("status", "run", "--json")
        assert done.returncode == 0, done.stderr
        return {row["phase"]: row for row in next(iter(json.loads(done.stdout).values()))}

    def wait_step(self, phase: str, step: int, seconds: float = 300) -> None:
        """Until `phase` has made `step`. A phase that has ended fails at once, not after `seconds`."""
        asked = time.monotonic()

        def reached() -> bool:
            nonlocal asked
            if self.record.step(phase) >= step:
                return True
            if time.monotonic() > asked + 20:
                asked = time.monotonic()
                ended = self.states()[phase]["state"] == "failed" and self.record.step(phase) < step
                assert not ended, f"{phase} ended before step {step}\n{self.story()}"
            return False

        self.wait(reached, seconds, f"{phase} did not reach step {step}")

    def wait_end(self, phase: str, seconds: float = 300) -> None:
        """Until `phase` has finished, or the launcher has given it up."""

        def ended() -> bool:
            attempts = self.record.attempts(phase)
            return bool(attempts and attempts[-1].action in ("done", "fail"))

        self.wait(ended, seconds, f"{phase} did not end")

    def wait(self, condition, seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what}\n{self.story()}"
            time.sleep(0.1)

    def curve(self, phase: str) -> dict[int, int]:
        """Step to checksum; a step done twice must have come to the same."""
        seen: dict[int, int] = {}
        for line in (self.run / f"steps-{phase}.txt").read_text().splitlines():
            step, value = map(int, line.split())
            assert seen.setdefault(step, value) == value, f"step {step} differs after a restart"
        return seen

    def story(self) -> str:
        """Everything that helps to understand a failed test."""
        logs = [f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.run.glob("logs/*-*.log"))]
        return "\n".join([self.onediff("explain", "run").stdout, *logs])


def undisturbed(steps: int) -> dict[int, int]:
    value, curve = 0, {}
    for step in range(1, steps + 1):
        value = value * 31 % 1000003 + step
        curve[step] = value
    return curve


def samples(run: Launched, phase: str) -> dict[int, list[int]]:
    """Step to the ids of its samples, over all ranks; a rank that did a step twice must have read the same."""
    read: dict[tuple[int, str], list[int]] = {}
    for path in sorted(run.run.glob(f"samples-{phase}.*.txt")):
        for line in path.read_text().splitlines():
            step, *ids = map(int, line.split())
            assert read.setdefault((step, path.name), ids) == ids, f"{path.name}: step {step} read other samples again"
    found: dict[int, list[int]] = {}
    for (step, _), ids in read.items():
        found[step] = sorted([*found.get(step, []), *ids])
    return found


def undisturbed_samples(steps: int) -> dict[int, list[int]]:
    """Every sample once, eight a step."""
    order = random.Random(0).sample(range(steps * 8), steps * 8)
    return {step + 1: sorted(order[8 * step : 8 * step + 8]) for step in range(steps)}


def done_twice(run: Launched, phase: str) -> int:
    """Steps that were lost and done again."""
    return len((run.run / f"steps-{phase}.txt").read_text().splitlines()) - len(run.curve(phase))
