"""Judge an attempt from the notes its ranks left: one cause and one readable line. Standard library only."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from launcher.failures import LEAVE_OUT, RESTART, STOP, STOP_AT_START, known
from launcher.record import Json, glimpse, last_lines, names_in
from launcher.rules import BAD_INPUT, CAUSES, FINISHED, NOT_A_NUMBER, STOPPED

TELLING_LINES = 60
"""Number of lines at the end of a log searched for a known failure: a stack trace may follow it."""
PEER = re.compile(
    r"closed by peer|reset by peer|Broken pipe|Connection refused|remote process exited|Socket Timeout|timed out"
    r"|No route to host|DistBackendError|collective operation timeout",
    re.IGNORECASE,
)

CAUSE_OF = {RESTART: "crash", LEAVE_OUT: "bad hardware", STOP: "hopeless", STOP_AT_START: "hopeless at start"}
"""The cause recorded for each action of a known failure."""
NOTE = {"rank", "node", "code", "ended", "log", "last"}
"""The keys of a note by `launcher.task`, all required. `told` is the signal that the rank received before its end."""


class Outcome(NamedTuple):
    """How an attempt ended, as recorded in `launcher.record.Attempt`."""

    cause: str
    reason: str
    exit_code: int | None = None
    log: str | None = None
    blamed: tuple[str, ...] = ()


def read_notes(folder: Path) -> list[Json]:
    """The notes of all ranks that wrote one, in the order in which they ended."""
    notes = [
        note for name in names_in(folder) if name[0].isdecimal() and (note := glimpse(folder / name)).keys() >= NOTE
    ]
    return sorted(notes, key=lambda note: note["ended"])


def judge(
    notes: Sequence[Json],
    nodes: Sequence[str],
    tasks: int,
    finished: bool,
    status: Json,
    down: Callable[[list[str]], Sequence[str]] = lambda nodes: (),
    ended: bool = False,
    heard: Collection[str] = (),
    rows: Sequence[Sequence[str]] = (),
    said: Sequence[str] = (),
) -> Outcome:
    """The outcome of an attempt, from the notes of `tasks` ranks spread evenly over `nodes`.

    `down` returns the subset of some nodes that Slurm considers lost. `ended` is whether Slurm is ending the job. `heard`
    has the nodes whose tasks srun saw end, `rows` the profile's own known failures, `said` srun's output.
    """
    failed = [note for note in notes if note["code"] not in (FINISHED, STOPPED)]
    silent = [node for node in silent_nodes(notes, nodes, tasks) if node not in heard]
    if silent and (ended or not all(map(lost_peer, failed))):
        # Slurm ends the job, or a rank failed by itself: the others are killed and may leave no note.
        silent = list(down(silent))
    if silent and len(silent) < len(nodes):
        return Outcome("crash", f"{', '.join(silent)} fell silent: node failure", blamed=tuple(silent))
    if failed and all(note.get("told") for note in failed) and (ended or len(notes) == tasks):
        return Outcome(
            "interrupted",
            f"ended by {failed[0]['told']} from Slurm or a person, before a checkpoint",
            failed[0]["code"],
        )
    if failed and len(notes) < tasks and all(map(lost_peer, failed)):
        return without_a_word(notes, tasks)
    if failed:
        # A rank that lost its peer may end first, but is not the cause if another rank has a reason of its own.
        first = failure(min(failed, key=lambda note: (lost_peer(note), note["ended"])), status, rows, said)
        return first._replace(blamed=()) if all(map(lost_peer, failed)) else first
    if len(notes) < tasks:
        return without_a_word(notes, tasks)
    if any(note["code"] == STOPPED for note in notes):
        why = str(status.get("reason") or "signal")
        saved = "" if "before the first step" in why else " with a checkpoint"
        return Outcome("stopped", f"stopped on request{saved} ({why})", STOPPED)
    if finished:
        return Outcome("finished", "finished", FINISHED)
    return Outcome("crash", "every rank ended with exit code 0, but the phase is not finished", FINISHED)


def without_a_word(notes: Sequence[Json], tasks: int) -> Outcome:
    """The outcome if ranks left no note: they and their tasks were killed, for which their nodes are not to blame."""
    missing = sorted(set(range(tasks)) - {note["rank"] for note in notes})
    return Outcome("crash", f"rank {missing[0]} and {len(missing) - 1} more ended without a trace, as by SIGKILL")


def failure(note: Json, status: Json, rows: Sequence[Sequence[str]] = (), said: Sequence[str] = ()) -> Outcome:
    """The outcome for the rank that failed first, from its exit code and the known failures (`rows` are the profile's)."""
    code = int(note["code"])
    lines = last_lines(Path(note["log"]), TELLING_LINES) or note["last"]
    last = [line.strip() for line in lines if line.strip()]
    who, told = f"rank {note['rank']} on {note['node']}", telling_line(last)
    if code == BAD_INPUT:
        reason = told.removeprefix("onediff: error: ") or f"{who}: bad input"
        return Outcome(CAUSES[code], reason, code, note["log"])
    if code == NOT_A_NUMBER:
        reason = str(status.get("reason") or told or "the loss is not a number")
        return Outcome(CAUSES[code], reason, code, note["log"])
    blamed = (str(note["node"]),)
    if found := known([*last, *(said if code > 128 else ())], rows):
        cause = CAUSE_OF[found.failure.action]
        guilty = blamed if cause in ("crash", "bad hardware") else ()
        return Outcome(cause, f"{who}: {found.words()}", code, note["log"], guilty)
    if code > 128:
        name = signal.Signals(code - 128).name if code - 128 in list(signal.Signals) else f"signal {code - 128}"
        hint = " (the kernel does this when memory runs out)" if name == "SIGKILL" else ""
        return Outcome("crash", f"{who} was ended by {name}{hint}", code, note["log"], blamed)
    return Outcome("crash", f"{who} ended with exit code {code}: {told}", code, note["log"], blamed)


def lost_peer(note: Json) -> bool:
    """Whether a rank ended because another one had: according to its last lines, or by srun's SIGTERM."""
    ended_by_srun = int(note["code"]) == 128 + signal.SIGTERM
    return ended_by_srun or (int(note["code"]) in (1, 134) and any(PEER.search(line) for line in note["last"]))


def telling_line(last: Sequence[str]) -> str:
    """The most informative line: our own error, else the last line."""
    own = [line for line in last if line.startswith("onediff: error: ")]
    return (own or list(last) or [""])[-1]


def silent_nodes(notes: Sequence[Json], nodes: Sequence[str], tasks: int) -> list[str]:
    """Nodes none of whose ranks left a note. Ranks are assigned to nodes in blocks."""
    per_node = tasks // len(nodes)
    heard = {note["rank"] // per_node for note in notes}
    return [node for index, node in enumerate(nodes) if index not in heard]


def sum_verdict(notes: Sequence[Json], nodes: Sequence[str], tasks: int) -> dict[str, str]:
    """Nodes whose ranks failed the torch all-reduce, and why. Ranks are assigned to nodes in blocks."""
    per_node, unfit = tasks // len(nodes), {}
    for index, node in enumerate(nodes):
        own = [note for note in notes if note["rank"] // per_node == index]
        failed = [note for note in own if note["code"]]
        if failed:
            cause = min(failed, key=lambda note: (lost_peer(note), note["ended"]))
            unfit[node] = f"all-reduce: {telling_line(cause['last']) or 'exit code ' + str(cause['code'])}"
        elif len(own) < per_node:
            unfit[node] = "all-reduce: no answer in time"
    return unfit
