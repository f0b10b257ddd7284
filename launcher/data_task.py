"""One task of a data job: runs its share of every command and leaves a log and a note of how it ended.

    python -m launcher.data_task RUN shards|merge

Finished chunks are skipped, so a task may be started any number of times. Standard library only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from launcher import frozen
from launcher.environment import for_ranks
from launcher.local import exit_code
from launcher.record import Record
from launcher.say import say
from launcher.task import leave_note
from onediff.errors import UserError


def main(run: Path, phase: str) -> int:
    """Run the plan's commands one after the other. Returns the exit code of the first that failed, or 0."""
    record = Record(run)
    frozen.check(record.folder)
    plan = record.submitted_plan()
    tasks = plan["phases"][phase]["tasks"]
    number = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")) if phase == "shards" else 0
    share = ["--share", f"{number}/{tasks}"] if phase == "shards" else []
    environment = for_ranks(plan["environment"])
    notes = record.exits(phase, 1)
    (notes / f"{number}.json").unlink(missing_ok=True)
    log = record.logs / f"{phase}.1.rank{number}.log"
    process: subprocess.Popen[bytes] | None = None

    def end(signum: int, _: object) -> None:
        """Handle Slurm's SIGTERM: the time limit, a preemption or scancel."""
        if process is not None:
            process.terminate()

    signal.signal(signal.SIGTERM, end)
    code = 0
    with log.open("ab") as file:
        for words in plan["commands"]:
            command = [*plan["prefix"], *words, *share]
            say(f"{' '.join(command)}; log: {log}")
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
            code = exit_code(process)
            if code:
                break
    leave_note(notes, number, code, log, None)
    say(f"ended with exit code {code}")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
    except UserError as error:
        sys.exit(f"onediff: error: {error}")
