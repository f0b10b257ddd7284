"""The processes of a rehearsal, forked from one that has done the imports.

    python -m onediff.rehearsal.forks ROLES

ROLES is a JSON list of `Role`s. A rank's imports take 8 s of CPU time, which is spent only once.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from importlib import import_module
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

from onediff.config.compose import load_run
from onediff.model.lean import lean_imports
from onediff.rehearsal import rank
from onediff.rehearsal.role import Role

AT_ONCE = 2
"""Number of concurrent processes, each of which uses one core and about 0.6 GB."""
LATER = ("torch._dynamo.config", "transformers.modeling_layers", "onediff.data.images")
"""Modules that a rank imports late."""
OF_TENSOR = ("onediff.parallel.tensor", "onediff.parallel.sequence")
"""Modules that a rank needs only for tensor parallelism."""


def main(roles: list[Role]) -> None:
    """Runs the roles in order, `AT_ONCE` at a time. Exits with the reason if one of them fails."""
    if load_run(roles[0].config, roles[0].overrides).parallel.tensor > 1:
        with lean_imports():
            for name in OF_TENSOR:
                import_module(name)
    for name in LATER:
        import_module(name)
    fork = multiprocessing.get_context("fork")
    waiting, playing = iter(roles), dict[Any, tuple[BaseProcess, Role]]()
    while True:
        for role in waiting:
            process: BaseProcess = fork.Process(target=begin, args=(role,), daemon=True)
            process.start()
            playing[process.sentinel] = process, role
            if len(playing) == AT_ONCE:
                break
        if not playing:
            return
        for ended in connection.wait(list(playing)):
            process, role = playing.pop(ended)
            process.join()
            if process.exitcode:
                reason = f"rank {role.rank} of {role.world} was killed by signal {-process.exitcode}"
                sys.exit(reason if process.exitcode < 0 else process.exitcode)


def begin(role: Role) -> None:
    """Runs one rank. Exits with the reason if it fails before it can report its findings."""
    try:
        rank.main(role)
    except Exception as error:
        sys.exit(f"rank {role.rank} of {role.world} failed: {error}")


if __name__ == "__main__":
    main([Role(**role) for role in json.loads(sys.argv[1])])
