"""The faults of `fault_campaign.py`: what is done to a run, what it may cost, and what `explain` must say of it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import slurm_cluster
from launch_runs import Launched, done_twice, samples, undisturbed, undisturbed_samples
from mlflow_server import MlflowServer

from launcher.goodput import recoveries

STEPS, EVERY = 20, 5
DISK = "4G"
"""Sparse; the pre-flight wants 1 GiB free."""
Disturb = Callable[[], str]
"""Disturbs a run that was submitted; returns a part of what `explain` must say."""
Fault = Callable[["Case"], Disturb]
"""Prepares a run before it is submitted."""


class Place(NamedTuple):
    """What all runs of a campaign share."""

    cluster: slurm_cluster.SlurmCluster
    disk: Path
    """A file system of its own, on which the runs lie."""
    mlflow: MlflowServer
    """Started by the first run that needs it."""


@contextmanager
def disk_at(folder: Path) -> Iterator[Path]:
    """Mount a new ext4 file system on `folder`: a real disk, which can be frozen."""
    folder.mkdir()
    image = folder.with_suffix(".img")
    for words in (["truncate", "-s", DISK, image], ["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, folder]):
        subprocess.run(words, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class Case:
    """One run and its fault."""

    def __init__(self, number: int, kind: str, place: Place) -> None:
        self.draw, self.kind = random.Random(number), kind
        self.step = self.draw.randrange(2, STEPS - 2)
        self.place, self.cluster, self.home = place, place.cluster, place.disk / str(number)
        self.faults: list[dict[str, Any]] = []
        self.wish: dict[str, Any] = {"seconds": 0.2}
        self.profile: dict[str, Any] = {}
        self.free = False
        """The fault must not cost a step."""
        self.checks: list[Callable[[], list[str]]] = []
        """What is wrong with the run once it has ended, beyond what every run is checked for."""

    def at(self, do: str, step: int | None = None, rank: int | None = None) -> None:
        """Plan what a rank does to itself at a step; draw the rank if none is given."""
        rank = self.draw.randrange(4) if rank is None else rank
        self.faults.append({"phase": "one", "step": self.step if step is None else step, "rank": rank, "do": do})

    def run(self) -> dict[str, Any]:
        """Run to the end, and return what happened and what was wrong."""
        disturb = FAULTS[self.kind](self)
        made = self.made = Launched(self.home, self.cluster, faults=self.faults, **self.wish)
        made.profile["requeue"] = {"hang_minutes": 0.2, "start_minutes": 2, "fence_seconds": 20, "node_failures": 9}
        made.profile["requeue"] |= {"section_minutes": {"evaluation": 0.3}}
        made.profile |= self.profile
        self.job = made.submitted("--phases", "one", "--spares", "1")["one"]
        words = disturb()
        made.wait_end("one")
        return self.judged(words)

    def judged(self, words: str) -> dict[str, Any]:
        made, attempts = self.made, self.made.record.attempts("one")
        told, wrong = made.onediff("explain", "run").stdout, []
        if attempts[-1].cause != "finished":
            wrong.append(f"ended by {attempts[-1].cause}: {attempts[-1].reason}")
        elif made.curve("one") != undisturbed(STEPS):
            wrong.append("another curve")
        elif samples(made, "one") != undisturbed_samples(STEPS):
            wrong.append("other samples")
        twice = done_twice(made, "one")
        if twice > (0 if self.free else EVERY * max(1, len(attempts) - 1)):
            wrong.append(f"{twice} steps done twice")
        if words not in told:
            wrong.append(f"explain does not say {words!r}: {told}")
        wrong += [fault for check in self.checks for fault in check()]
        shown = self.cluster.sh("scontrol", "--oneliner", "show", "job", self.job)
        return {
            "fault": self.kind,
            "step": self.step,
            "attempts": len(attempts),
            "left the job": int(shown.split(" Restarts=")[1].split()[0]),
            "steps twice": twice,
            "recovery": [round(one.total, 1) for one in recoveries(attempts)],
            "explained": attempts[0].reason,
            "wrong": wrong,
        }

    def warn(self) -> None:
        """Send what Slurm sends before a job's end."""
        self.cluster.sh("scancel", "--batch", "--signal=USR1", self.job)

    def wait_section(self, name: str) -> None:
        """Wait until rank 0 reports that it is in the section `name`."""
        self.made.wait(lambda: self.made.record.beat().get("section") == name, 300, f"no {name}")


def killed(case: Case) -> Disturb:
    case.at("kill", rank=(rank := case.draw.randrange(4)))
    return lambda: f"rank {rank} on node{rank // 2 + 1} was ended by SIGKILL"


def killed_while_starting(case: Case) -> Disturb:
    case.at("kill", step=0)
    return lambda: "was ended by SIGKILL"


def killed_again_after_the_restart(case: Case) -> Disturb:
    case.at("kill")
    case.at("kill", step=case.step + 1)
    return lambda: "restarted in the job"


def stopped(case: Case) -> Disturb:
    case.at("stop")
    return lambda: "no step for 0.2 minutes"


def failed(case: Case) -> Disturb:
    case.at("exit 1")
    return lambda: "fault with code 1"


def stuck_in_an_evaluation(case: Case) -> Disturb:
    case.wish["evaluations"] = {str(case.step): 600}
    return lambda: "evaluation, 3 of 40: nothing moved for 0.3 minutes"


def node_crashed(case: Case) -> Disturb:
    def disturb() -> str:
        case.made.wait_step("one", case.step)
        case.cluster.crash("node2")
        return "node2 fell silent: node failure"

    return disturb


def network_cut(case: Case) -> Disturb:
    def disturb() -> str:
        case.made.wait_step("one", case.step)
        case.cluster.sh("ip", "link", "set", f"{case.cluster.bridge}n2", "down")
        return "node2 fell silent: node failure"

    return disturb


def controller_restarted(case: Case) -> Disturb:
    def disturb() -> str:
        case.made.wait_step("one", case.step)
        case.cluster.stop_controller()
        time.sleep(case.draw.uniform(0, 5))
        case.cluster.start_controller()
        return "one: finished"

    return disturb


def warned(case: Case) -> Disturb:
    case.free = True

    def disturb() -> str:
        case.made.wait_step("one", case.step)
        case.warn()
        return "stopped on request with a checkpoint (SIGUSR1): queued again"

    return disturb


def warned_while_starting(case: Case) -> Disturb:
    case.faults, case.free = [{"phase": "one", "step": 0, "do": "wait"}], True

    def disturb() -> str:
        case.made.wait(lambda: len(list(case.made.run.glob("fault-0-*"))) == 4, 300, "the ranks did not start")
        case.warn()
        time.sleep(case.draw.uniform(0, 3))
        (case.made.run / "go").touch()
        return "(SIGUSR1): queued again"

    return disturb


def warned_in_an_evaluation(case: Case) -> Disturb:
    case.wish["evaluations"], case.free = {str(case.step): 600}, True

    def disturb() -> str:
        case.wait_section("evaluation")
        time.sleep(case.draw.uniform(0, 5))
        case.warn()
        return "stopped on request with a checkpoint (SIGUSR1): queued again"

    return disturb


def warned_in_a_save(case: Case) -> Disturb:
    case.step, case.free = case.draw.choice((5, 10, 15)), True
    case.wish["saves"] = {str(case.step): 6}

    def disturb() -> str:
        case.wait_section("saving")
        time.sleep(case.draw.uniform(0, 5))
        case.warn()
        return "stopped on request with a checkpoint (SIGUSR1): queued again"

    def no_step_more() -> list[str]:
        last = case.made.record.attempts("one")[0].last_step
        return [] if last == case.step else [f"the warning was heeded at step {last}"]

    case.checks.append(no_step_more)
    return disturb


def warned_in_a_restart(case: Case) -> Disturb:
    case.step = case.draw.randrange(2, STEPS // 2)  # the warning must come before the end
    case.at("kill")

    def disturb() -> str:
        case.made.wait(lambda: any(one.ended for one in case.made.record.attempts("one")), 300, "no rank died")
        time.sleep(case.draw.uniform(0, 5))
        case.warn()
        return "queued again"

    return disturb


def told_to_end_while_starting(case: Case) -> Disturb:
    case.faults = [{"phase": "one", "step": 0, "do": "wait"}]

    def disturb() -> str:
        case.made.wait(lambda: len(list(case.made.run.glob("fault-0-*"))) == 4, 300, "the ranks did not start")
        case.cluster.sh("scancel", "--signal=TERM", case.job)
        return "ended by SIGTERM from Slurm or a person"

    return disturb


def disk_full(case: Case) -> Disturb:
    case.profile = {"scratch": "/dev/shm", "preflight": {"seconds": 60, "free_disk_gb": 0.4}}
    case.cluster.on("node1", "fallocate", "-l", "300M", "/dev/shm/full")
    return lambda: "node1: /dev/shm: 0.2 GiB free, 0.4 required"


def disk_stalled(case: Case) -> Disturb:
    """Every write waits, for less or more time than what counts as a hang."""

    def disturb() -> str:
        case.made.wait_step("one", case.step)
        subprocess.run(["fsfreeze", "--freeze", case.place.disk], check=True)
        try:
            time.sleep(case.draw.uniform(4, 30))
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", case.place.disk], check=True)
        return "one: finished"

    def no_node_is_blamed() -> list[str]:
        attempts = case.made.record.attempts("one")
        return [f"{one.cause} of {one.blamed}: {one.reason}" for one in attempts if one.blamed]

    case.checks.append(no_node_is_blamed)
    return disturb


def mlflow_away(case: Case) -> Disturb:
    """The server dies, and comes back during the run or long after it."""
    server, experiment = case.place.mlflow, str(case.home)
    if server.process is None:
        server.start()
    case.wish |= {"mlflow": [server.url, experiment], "seconds": 0.8}
    case.free = True

    def disturb() -> str:
        case.made.wait_step("one", case.step)
        server.stop()
        if case.draw.random() < 0.5:
            time.sleep(case.draw.uniform(0, 5))
            server.start()
        return "one: finished"

    def lost_in_mlflow() -> list[str]:
        from mlflow import MlflowClient

        if server.process is None:
            server.start()
        sent = subprocess.run(
            [sys.executable, "-m", "onediff", "track", "sync", case.made.run], capture_output=True, text=True
        )
        client = MlflowClient(server.url)
        runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
        names = sorted(str(run.info.run_name) for run in runs)
        if sent.returncode or names != ["run", "run / one"]:
            return [f"MLflow has the runs {names}; {sent.stdout}{sent.stderr}"]
        of_phase = next(run for run in runs if run.info.run_name == "run / one")
        points = [(point.step, int(point.value)) for point in client.get_metric_history(of_phase.info.run_id, "loss")]
        return [] if sorted(points) == sorted(undisturbed(STEPS).items()) else [f"MLflow has {points}"]

    def attempts() -> list[str]:
        made = case.made.record.attempts("one")
        return [] if len(made) == 1 else [f"{len(made)} attempts"]

    case.checks += [lost_in_mlflow, attempts]
    return disturb


FAULTS: dict[str, Callable[[Case], Callable[[], str]]] = {
    "SIGKILL": killed,
    "SIGKILL while starting": killed_while_starting,
    "SIGKILL, and again after the restart": killed_again_after_the_restart,
    "SIGSTOP": stopped,
    "an error of its own": failed,
    "stuck in an evaluation": stuck_in_an_evaluation,
    "node crash": node_crashed,
    "network cut": network_cut,
    "controller restart": controller_restarted,
    "warning": warned,
    "warning while starting": warned_while_starting,
    "warning in an evaluation": warned_in_an_evaluation,
    "warning in a save": warned_in_a_save,
    "warning in a restart": warned_in_a_restart,
    "slow disk": disk_stalled,
    "MLflow down": mlflow_away,
    "SIGTERM while starting": told_to_end_while_starting,
    "full disk": disk_full,
}
TWICE = ("MLflow down", "slow disk", *(kind for kind in FAULTS if kind.startswith("warning ")))
"""Faults that come twice a round, since they can strike at more moments."""


def kind_of(number: int) -> str:
    """Return the kind of fault `number`, from 1: every round has all kinds in a random order."""
    kinds = sorted([*FAULTS, *TWICE])
    turn, place = divmod(number - 1, len(kinds))
    return random.Random(3 * turn).sample(kinds, len(kinds))[place]
