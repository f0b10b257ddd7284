"""Random faults on real Slurm daemons, one run each: losses, samples, blame and words are checked, and a table is kept.

    make fault-campaign
    python tests/launcher/fault_campaign.py --faults 100 --seconds 3600

The ranks are those of `tests/support/standin_trainer.py`, whose state depends on every step done before. What has been run
stands in docs/fault-campaign.jsonl and is not run again; the table is docs/fault-campaign.md. Needs root and the packages of
tests/debian-packages.txt.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[2]
sys.path[:0] = [str(HOUSE), str(HOUSE / "tests" / "support")]

import slurm_cluster  # noqa: E402
from launch_runs import Launched, done_twice, undisturbed  # noqa: E402

from launcher.goodput import recoveries  # noqa: E402

RECORD, TABLE = HOUSE / "docs" / "fault-campaign.jsonl", HOUSE / "docs" / "fault-campaign.md"
STEPS, EVERY = 20, 5
Fault = Callable[["Case"], str]
"""Disturbs a run; returns a part of what `explain` must say."""


class Case:
    """One run and its fault."""

    def __init__(self, number: int, cluster: slurm_cluster.SlurmCluster, home: Path) -> None:
        self.draw = random.Random(number)
        self.kind = self.draw.choice(sorted(FAULTS))
        self.step = self.draw.randrange(2, STEPS - 2)
        self.cluster, self.home = cluster, home
        self.faults: list[dict[str, Any]] = []
        self.wish: dict[str, Any] = {"seconds": 0.2}
        self.profile: dict[str, Any] = {}

    def at(self, do: str, step: int | None = None, rank: int | None = None) -> None:
        """Plans what a rank, drawn by chance, does to itself at a step."""
        rank = self.draw.randrange(4) if rank is None else rank
        self.faults.append({"phase": "one", "step": self.step if step is None else step, "rank": rank, "do": do})

    def run(self) -> dict[str, Any]:
        """The run to its end, and what is wrong with it."""
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
        if (twice := done_twice(made, "one")) > EVERY * max(1, len(attempts) - 1):
            wrong.append(f"{twice} steps done twice")
        if words not in told:
            wrong.append(f"explain does not say {words!r}: {told}")
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


def killed(case: Case) -> Callable[[], str]:
    case.at("kill", rank=(rank := case.draw.randrange(4)))
    return lambda: f"rank {rank} on node{rank // 2 + 1} was ended by SIGKILL"


def killed_while_starting(case: Case) -> Callable[[], str]:
    case.at("kill", step=0)
    return lambda: "was ended by SIGKILL"


def killed_again_after_the_restart(case: Case) -> Callable[[], str]:
    case.at("kill")
    case.at("kill", step=case.step + 1)
    return lambda: "restarted in the job"


def stopped(case: Case) -> Callable[[], str]:
    case.at("stop")
    return lambda: "no step for 0.2 minutes"


def failed(case: Case) -> Callable[[], str]:
    case.at("exit 1")
    return lambda: "fault with code 1"


def stuck_in_an_evaluation(case: Case) -> Callable[[], str]:
    case.wish["evaluations"] = {str(case.step): 600}
    return lambda: "evaluation, 3 of 40: nothing moved for 0.3 minutes"


def node_crashed(case: Case) -> Callable[[], str]:
    def disturb() -> str:
        case.made.wait_step("one", case.step)
        case.cluster.crash("node2")
        return "node2 fell silent: node failure"

    return disturb


def network_cut(case: Case) -> Callable[[], str]:
    def disturb() -> str:
        case.made.wait_step("one", case.step)
        case.cluster.sh("ip", "link", "set", f"{case.cluster.bridge}n2", "down")
        return "node2 fell silent: node failure"

    return disturb


def controller_restarted(case: Case) -> Callable[[], str]:
    def disturb() -> str:
        case.made.wait_step("one", case.step)
        case.cluster.stop_controller()
        time.sleep(case.draw.uniform(0, 5))
        case.cluster.start_controller()
        return "one: finished"

    return disturb


def warned(case: Case) -> Callable[[], str]:
    def disturb() -> str:
        case.made.wait_step("one", case.step)
        case.cluster.sh("scancel", "--signal=USR1", case.job)
        return "stopped on request with a checkpoint (SIGUSR1): queued again"

    return disturb


def told_to_end_while_starting(case: Case) -> Callable[[], str]:
    case.faults = [{"phase": "one", "step": 0, "do": "wait"}]

    def disturb() -> str:
        case.made.wait(lambda: len(list(case.made.run.glob("fault-0-*"))) == 4, 300, "the ranks did not start")
        case.cluster.sh("scancel", "--signal=TERM", case.job)
        return "ended by SIGTERM from Slurm or a person"

    return disturb


def disk_full(case: Case) -> Callable[[], str]:
    case.profile = {"scratch": "/dev/shm", "preflight": {"seconds": 60, "free_disk_gb": 0.4}}
    case.cluster.on("node1", "fallocate", "-l", "300M", "/dev/shm/full")
    return lambda: "node1: /dev/shm: 0.2 GiB free, 0.4 wanted"


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
    "SIGTERM while starting": told_to_end_while_starting,
    "full disk": disk_full,
}


def restored(cluster: slurm_cluster.SlurmCluster) -> None:
    """Makes every node fit again, and leaves no job behind."""
    cluster.sh("scancel", "--user=root", check=False)
    for name in cluster.names:
        if name in cluster.inits and name == "node2" and name not in cluster.idle_nodes():
            cluster.crash(name)
        if name not in cluster.inits:
            cluster.start_node(name)
    cluster.on("node1", "rm", "-f", "/dev/shm/full")
    cluster.wait_until(lambda: not cluster.sh("squeue", "-h"), 300, "jobs are left")
    cluster.wait_until(lambda: len(cluster.idle_nodes()) == cluster.count, 300, "a node did not come back")


def table(rows: list[dict[str, Any]], wanted: int) -> str:
    """The page of the campaign: one row a kind of fault."""
    lines = [
        "# Fault campaign",
        "",
        f"`make fault-campaign`: {len(rows)} of {wanted} random faults so far, each in a run of {STEPS} steps with",
        f"a checkpoint every {EVERY}, four ranks on two of three nodes of real Slurm daemons, one node spare. Right is",
        "a run that ends with the undisturbed curve, loses a checkpoint interval a restart at most, and whose",
        "`explain` names the fault. Times are seconds from the failure to the first new step, on a busy machine of",
        "two cores.",
        "",
        "| fault | runs | right | left the job | steps done twice, at most | recovery, median | longest |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind in sorted(FAULTS):
        of_kind = [row for row in rows if row["fault"] == kind]
        times = sorted(seconds for row in of_kind for seconds in row["recovery"])
        middle, longest = (f"{times[len(times) // 2]:.0f}", f"{times[-1]:.0f}") if times else ("", "")
        right, left = sum(not row["wrong"] for row in of_kind), sum(row["left the job"] > 0 for row in of_kind)
        twice = max((row["steps twice"] for row in of_kind), default=0)
        lines.append(f"| {kind} | {len(of_kind)} | {right} | {left} | {twice} | {middle} | {longest} |")
    wrong = [f"- {row['number']}, {row['fault']}: {'; '.join(row['wrong'])[:200]}" for row in rows if row["wrong"]]
    return "\n".join([*lines, *(["", "What was wrong:", "", *wrong] if wrong else []), ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--faults", type=int, default=100, metavar="N", help="faults of the whole campaign (default: 100)"
    )
    parser.add_argument("--seconds", type=float, default=3600, help="begin none after this time (default: 3600)")
    args = parser.parse_args()
    if why := slurm_cluster.missing():
        print(why)
        return 2
    rows = [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []
    done, end = {row["number"] for row in rows}, time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory(prefix="fault-campaign-") as folder:
        cluster = slurm_cluster.SlurmCluster(Path(folder) / "slurm")
        cluster.root.mkdir()
        try:
            cluster.up()
            for number in range(1, args.faults + 1):
                if number in done or time.monotonic() > end:
                    continue
                case = Case(number, cluster, Path(folder) / str(number))
                try:
                    row = case.run()
                except AssertionError as error:
                    row = {"fault": case.kind, "step": case.step, "attempts": 0, "left the job": 0, "steps twice": 0}
                    row |= {"recovery": [], "explained": "", "wrong": [str(error)[-600:]]}
                rows.append({"number": number, **row})
                with RECORD.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(json.dumps(rows[-1]), flush=True)
                restored(cluster)
        finally:
            cluster.down()
    TABLE.write_text(table(rows, args.faults))
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
