"""Data sets built by the tasks of a Slurm array: what to build, the plan, and the two batch scripts."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pydantic import Field

from launcher.frozen import module
from launcher.plan import container_prefix, pyxis_options
from launcher.profile import ClusterProfile
from launcher.queue import mark
from launcher.record import Json
from launcher.render import Script, check_folder, directive, environment_lines, job_name, resource_directives, variables
from onediff.config.section import PLAIN_NAME, Section, nearest, validated
from onediff.errors import UserError

SHARDS, MERGE = "shards", "merge"
"""The two phases of a data job: an array that makes shards, and one task that merges them."""
COMMANDS = ("build", "compose", "convert", "render")
"""The `onediff data` commands whose work can be split over tasks."""


class DataCommands(Section):
    """A file of `onediff data` commands for `onediff launch data`."""

    name: str
    """Name of the job."""
    commands: list[str] = Field(min_length=1)
    """Commands as typed after `onediff data`, one per line: `compose --pairs 1000000 --out /data/composed …`."""


class DataJob(NamedTuple):
    """What to build."""

    name: str
    commands: list[list[str]]
    """The arguments of `onediff data`; `COLLECTION` stands for the frozen file of a collection."""
    collection: Json | None
    """A collection for `onediff data build`, without the parts whose raw files are missing."""
    passed_over: list[str]
    """One line for each of those parts."""


COLLECTION = "@collection@"


def load_data_job(file: Path) -> DataJob:
    """Read a collection (`configs/diffcap.yaml`) or a file of commands. Raises UserError if no task could run it."""
    from onediff.config.compose import find
    from onediff.config.yaml_file import read_mapping

    values = read_mapping(find(str(file), Path.cwd()))
    if "parts" in values:
        return collection_job(file, values)
    wanted = validated(DataCommands, values, str(file))
    commands = []
    for line in wanted.commands:
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UserError(f"{file}: {line!r}: {error}") from None
        check_command(words, f"{file}: {line!r}")
        commands.append(words)
    return DataJob(wanted.name, commands, None, [])


def collection_job(file: Path, values: dict[str, Any]) -> DataJob:
    """The job that builds the parts whose raw files are present."""
    from onediff.config.collection import Collection

    collection = validated(Collection, values, str(file))
    present, passed_over = {}, []
    for name, part in collection.parts.items():
        if absent := part.missing_files():
            passed_over.append(f"{name}: raw files missing: {absent[0]}")
        else:
            present[name] = part.model_dump(mode="json")
    if not present:
        raise UserError(f"{file}: the raw files of every part are missing; the first: {passed_over[0]}")
    return DataJob(file.stem, [["build", COLLECTION]], {"out": str(collection.out), "parts": present}, passed_over)


def check_command(words: list[str], where: str) -> None:
    """Parse a command as the task will. Raises a UserError that starts with `where`."""
    name = words[0] if words else ""
    if name not in COMMANDS:
        raise UserError(f"{where}: cannot be split over tasks{nearest(name, COMMANDS)}")
    if "--share" in words:
        raise UserError(f"{where}: remove --share; the launcher sets it")

    class DataCommandParser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{where}: {message}")

    parser = DataCommandParser(add_help=False)
    importlib.import_module(f"data_prep.cli.{name}").add_arguments(parser)
    parser.parse_intermixed_args(words[1:])


def data_plan(job: DataJob, run: Path, profile: ClusterProfile, tasks: int, again: list[str]) -> Json:
    """The plan for the tasks, as JSON. `again` is the command that resubmits the job."""
    check_folder(run)
    python = profile.python or sys.executable
    inside = profile.container.python if profile.container else python
    onediff = profile.command or [*container_prefix(profile, run), inside, *module(run, "onediff")]
    in_container = pyxis_options(profile, run)
    frozen = str(run / "launch" / "collection.yaml")
    commands = []
    for words in job.commands:
        words = [frozen if word == COLLECTION else word for word in words]
        commands.append(words if "--processes" in words else [*words, "--processes", str(profile.cpus_per_task)])
    return {
        "name": job.name,
        "kind": "data",
        "run": str(run),
        "again": shlex.join(again),
        "supervisor_python": python,
        "environment": variables(profile),
        "prefix": [*(["srun", "--ntasks=1", *profile.srun, *in_container] if in_container else []), *onediff, "data"],
        "commands": commands,
        "phases": {SHARDS: {"tasks": tasks, "nodes": [1, tasks]}, MERGE: {"tasks": 1, "nodes": [1, 1]}},
    }


def for_data(profile: ClusterProfile) -> ClusterProfile:
    """The profile with one task and no GPU, as requested for one task of a data job."""
    return profile.model_copy(update={"gpus_per_node": 0, "tasks_per_node": 1, "exclusive": False})


def data_script(plan: Json, profile: ClusterProfile, phase: str, at_most: int | None) -> Script:
    """The batch script of one phase; at most `at_most` tasks of the array run at once."""
    run, tasks = Path(plan["run"]), plan["phases"][phase]["tasks"]
    directives = [directive("job-name", job_name(plan["name"], phase))]
    directives += [directive("comment", mark(run, phase)), *resource_directives(profile, "1", 1, 0)]
    directives += [directive("array", f"0-{tasks - 1}" + (f"%{at_most}" if at_most else ""))] if phase == SHARDS else []
    pattern = f"{phase}-%A_%a.log" if phase == SHARDS else f"{phase}-%j.log"
    directives += ["--requeue", "--open-mode=append", directive("output", run / "logs" / pattern)]
    return Script(
        title=f"OneDiff: {phase} of the data job {plan['name']!r}",
        directives=directives,
        environment=environment_lines(profile, run / "launch" / "code"),
        work="Makes a share of the chunks." if phase == SHARDS else "Merges the finished chunks.",
        command=[plan["supervisor_python"], *module(run, "launcher.data_task"), plan["run"], phase],
    )


def own_name(job: DataJob) -> str:
    """The job's name, which becomes part of paths. Raises UserError if it is not a plain name."""
    if not PLAIN_NAME.fullmatch(job.name):
        raise UserError(f"name {job.name!r}: use letters, digits, '.', '_' and '-' only")
    return job.name


def here(job: DataJob, run: Path) -> list[list[str]]:
    """The commands to run on this machine, without Slurm."""
    frozen = str(run / "launch" / "collection.yaml")
    return [
        [sys.executable, "-m", "onediff", "data", *(frozen if w == COLLECTION else w for w in words)]
        for words in job.commands
    ]
