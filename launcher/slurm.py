"""Slurm's client commands, each with a timeout and a one-line error.

Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from launcher.environment import for_commands
from onediff.errors import UserError

WAIT_SECONDS = 30.0
"""Seconds to wait for the controller; without a limit the clients hang for minutes when it is gone."""

UNKNOWN = 1 << 30
"""Stands for a limit that Slurm does not report."""


PASSING = re.compile(
    r"contact slurm controller|connect failure|controller in standby|[Ss]ocket timed out"
    r"|Connection (refused|timed out|reset)|Communication connection failure|Zero Bytes were transmitted"
    r"|temporarily|Requested nodes are busy|credential expired|[Mm]unge|authentication error|Unspecified error"
    r"|Unexpected message received"
)
"""Messages of Slurm's commands while the controller is away, restarting or overloaded, or an earlier step still ends."""


class NoAnswer(UserError):
    """Slurm did not answer; the request may have been carried out anyway."""


class Job(NamedTuple):
    """One line of `squeue`."""

    job: str
    state: str
    """PENDING, RUNNING, COMPLETING, …"""
    reason: str
    """Why it is pending; `None` if it is not."""
    nodes: int


class Partition(NamedTuple):
    """The limits of a partition that a submission may exceed."""

    name: str
    nodes: int
    gpus: int
    cpus: int
    minutes: int | None
    """Maximum time limit; None for no limit."""


def available() -> bool:
    """Whether Slurm's commands are on PATH."""
    return shutil.which("sbatch") is not None


def command(words: Sequence[str], wait: float = WAIT_SECONDS) -> str:
    """Run a Slurm command and return its output. Raises UserError if it is missing, times out, or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=wait, env=for_commands())
    except FileNotFoundError:
        raise UserError(
            f"{words[0]}: not found on PATH; run this on a login node of the cluster, or use `--profile local`"
        ) from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{words[0]}: no answer from Slurm's controller within {wait:.0f} s; try again later") from None
    if done.returncode:
        said = f"{words[0]}: {refusal(done.stderr or done.stdout)}"
        raise NoAnswer(said) if PASSING.search(said) else UserError(said)
    return done.stdout


def refusal(text: str) -> str:
    """The message of a failed Slurm command without its prefixes."""
    lines = [line.partition("error: ")[2] or line for line in text.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(line.strip() for line in lines)) or "failed without a message"


def submit(script: str, options: Sequence[str] = ()) -> str:
    """Queue the script file. Returns the job id, which is on a line of its own amid whatever the site prints."""
    said = command(["sbatch", "--parsable", *options, script])
    ids = re.findall(r"^(\d+)(?:;\S+)?$", said, re.MULTILINE)
    if len(ids) != 1:
        raise NoAnswer(f"sbatch: no job id in its answer {said.strip()[:200]!r}")
    return str(ids[0])


def test_only(script: str) -> str:
    """Ask Slurm whether it would accept the script, without queueing it. Raises UserError if not."""
    try:
        return command(["sbatch", "--test-only", script])
    except UserError as error:
        raise UserError(f"{error}; the request is at the top of {script}") from None


def jobs(ids: Sequence[str]) -> dict[str, Job]:
    """The jobs among `ids` that Slurm still lists; old jobs are absent. An array has the state of its most active task."""
    found: dict[str, Job] = {}
    for job in listed(ids):
        if job.job not in found or busy(job) < busy(found[job.job]):
            found[job.job] = job
    return found


def busy(job: Job) -> int:
    """Sort key: 0 for a running job, 1 for a pending one, 2 for one that has ended."""
    return ("RUNNING", "PENDING", job.state).index(job.state)


def listed(ids: Sequence[str]) -> list[Job]:
    """One entry per job or array task; tasks have the id of their array."""
    if not ids:
        return []
    try:
        return [job for job, _ in queued(f"--jobs={','.join(ids)}")]
    except UserError as error:
        if "Invalid job id" in str(error):  # squeue knows none of them
            return []
        raise


def own_jobs() -> list[tuple[Job, str]]:
    """Every job of this user that Slurm still lists, with its comment."""
    return queued(f"--user={os.getuid()}")


def queued(whose: str) -> list[tuple[Job, str]]:
    """What `squeue` lists with the option `whose`, each entry with its comment."""
    words = ["squeue", "--noheader", "--array", "--states=all", whose, "--format=%F|%T|%r|%D|%k"]
    rows = [line.split("|", 4) for line in command(words).splitlines()]
    return [(Job(row[0], row[1], row[2], int(row[3] or 0)), row[4]) for row in rows if len(row) == 5]


def configuration() -> dict[str, str]:
    """The values of `scontrol show config` by name."""
    lines = (line.partition("=") for line in command(["scontrol", "show", "config"]).splitlines())
    return {name.strip(): value.strip() for name, sign, value in lines if sign}


def partitions() -> dict[str, Partition]:
    """Every partition by name, with the GPUs and CPUs of its smallest node; the default partition is also under ""."""
    found: dict[str, Partition] = {}
    for line in command(["sinfo", "--noheader", "--format=%R|%P|%D|%G|%c|%l"]).splitlines():
        name, starred, nodes, gres, cpus, limit = line.split("|")
        before = found.get(name)
        here = Partition(name, int(nodes), gpus_in(gres), int(cpus.rstrip("+")), minutes(limit))
        if before:  # sinfo lists one row per kind of node
            here = here._replace(
                nodes=before.nodes + here.nodes, gpus=max(before.gpus, here.gpus), cpus=max(before.cpus, here.cpus)
            )
        found[name] = here
        if starred.endswith("*"):
            found[""] = here
    if any(not here.nodes for here in found.values()):
        # sinfo hides cloud nodes that are powered off, so their resources are left for sbatch to check.
        lines = command(["scontrol", "--oneliner", "show", "partition"]).splitlines()
        fields = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
        totals = {field["PartitionName"]: int(field.get("TotalNodes", 0)) for field in fields}
        for name, here in found.items():
            if not here.nodes:
                found[name] = here._replace(nodes=totals.get(here.name, 0), gpus=UNKNOWN, cpus=UNKNOWN)
    return found


def gpus_in(gres: str) -> int:
    """Number of GPUs in sinfo's notation: `gpu:h100:8(S:0-1)` is 8."""
    counts = []
    for word in gres.split(","):
        parts = word.partition("(")[0].split(":")
        if parts[0] == "gpu" and parts[-1].isdecimal():
            counts.append(int(parts[-1]))
    return sum(counts)


def minutes(limit: str) -> int | None:
    """Convert Slurm's time `[days-]hours:minutes:seconds`, `minutes[:seconds]` or `days-hours[:minutes]` to whole minutes.

    Returns None for no limit. Raises UserError if Slurm could not parse it.
    """
    if limit.lower() in ("infinite", "unlimited", "n/a"):
        return None
    days, dash, clock = limit.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in parts) or (dash and not days.isdecimal()) or len(parts) > 3:
        raise UserError(f"time limit {limit!r}: not in Slurm's format, such as 24:00:00 or 7-00:00:00")
    numbers = [int(part) for part in parts]
    if dash:
        hours, mins, seconds = (numbers + [0, 0])[:3]
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:
        hours, mins, seconds = 0, numbers[0], (numbers + [0])[1]
    return int(days or 0) * 1440 + hours * 60 + mins + (seconds > 0)
