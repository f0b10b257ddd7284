"""Render readable sbatch scripts from the template in `slurm/`. All user input is quoted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launcher.profile import ClusterProfile
from onediff.errors import UserError

PLAIN = re.compile(r"[A-Za-z0-9_./,:=@+\[\]%-]+")
RISKY = re.compile(r"[\x00-\x1f\x7f\"'\\`$]")


class Script(NamedTuple):
    """The parts of a batch script, in the order of the file."""

    title: str
    directives: list[str]
    environment: list[str]
    work: str
    command: list[str]


def rendered(script: Script) -> str:
    """The text of the script file."""
    from onediff.config.compose import shipped_folder

    values = {
        "TITLE": one_line(script.title, "title"),
        "DIRECTIVES": "\n".join(f"#SBATCH {line}" for line in script.directives),
        "ENVIRONMENT": "\n".join(script.environment),
        "WORK": script.work,
        "COMMAND": " \\\n    ".join(broken(script.command)),
    }
    text = (shipped_folder("slurm") / "job.sbatch").read_text(encoding="utf-8")
    # A single pass, so that a marker inside a value is not replaced.
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], text)


def broken(words: Sequence[str]) -> list[str]:
    """The quoted words of a command, split into lines of readable length."""
    lines: list[str] = []
    for word in map(shlex.quote, words):
        if lines and len(lines[-1]) + len(word) < 100:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def directive(option: str, value: object) -> str:
    """`--option=value` for an `#SBATCH` line. Raises UserError for a value that Slurm could misread."""
    text = safe(str(value), f"--{option}")
    return f"--{option}={text}" if PLAIN.fullmatch(text) else f'--{option}="{text}"'


def job_name(run: str, part: str) -> str:
    """The name under which Slurm shows a job; a run whose name begins with `onediff` gets no second one."""
    return f"{run}-{part}" if run.startswith("onediff") else f"onediff-{run}-{part}"


def safe(text: str, what: str) -> str:
    """Return `text`. Raises UserError if it has quotes, `$`, backslashes or control characters, which could alter it."""
    found = RISKY.search(text)
    if found:
        raise UserError(f"{what} {text!r}: {found[0]!r} is not allowed here; choose a simpler name")
    return text


def check_folder(run: Path) -> None:
    """Raises UserError for a run folder whose name would change in a job script."""
    safe(str(run), "run folder")
    if "%" in str(run):
        raise UserError(f"run folder {run}: must not contain '%', which Slurm would replace")


def one_line(text: str, what: str) -> str:
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise UserError(f"{what} {text!r}: must be one line")
    return text


def resource_directives(profile: ClusterProfile, nodes: str, tasks: int, gpus: int) -> list[str]:
    """The resource request: `nodes` is a count or a range, `tasks` and `gpus` are per node."""
    lines = []
    for option, value in (
        ("partition", profile.partition),
        ("account", profile.account),
        ("qos", profile.qos),
        ("constraint", profile.constraint),
        ("nodes", nodes),
        ("ntasks-per-node", tasks),
        ("gpus-per-node", gpu_request(profile, gpus)),
        ("cpus-per-task", profile.cpus_per_task),
        ("mem", memory(profile, tasks)),
        ("time", profile.time_limit),
    ):
        if value is not None:
            lines.append(directive(option, value))
    if profile.exclusive:
        lines.append("--exclusive")
    return lines + [own_option(line) for line in profile.sbatch]


def own_option(line: str) -> str:
    """An option from the profile's `sbatch` for an `#SBATCH` line; a value with spaces is quoted."""
    name, sign, value = one_line(line, "sbatch").partition("=")
    if not sign or " " in name or not re.search(r"\s", value) or value[0] in "\"'":
        return line
    return directive(name.lstrip("-"), value)


def gpu_request(profile: ClusterProfile, gpus: int) -> str | None:
    if not gpus:
        return None
    return f"{profile.gpu_type}:{gpus}" if profile.gpu_type else str(gpus)


def memory(profile: ClusterProfile, tasks: int) -> str | None:
    return None if profile.memory_per_task_gb is None else f"{round(profile.memory_per_task_gb * tasks * 1024)}M"


def environment_lines(profile: ClusterProfile, code: Path | None) -> list[str]:
    """Shell lines that prepare the node: modules, setup, then variables, the profile's last so that they take precedence."""
    lines = [f"module load {' '.join(map(shlex.quote, profile.modules))}"] if profile.modules else []
    if profile.setup:  # site scripts rarely tolerate `set -u`
        lines += ["set +u", *(one_line(line, "setup") for line in profile.setup), "set -u"]
    if code is not None:
        lines.append(f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    return lines + [f"export {name}={shlex.quote(value)}" for name, value in variables(profile).items()]


def variables(profile: ClusterProfile) -> dict[str, str]:
    """The environment variables that a profile sets for every rank."""
    made: dict[str, str] = {}
    if profile.interface:
        made |= {"NCCL_SOCKET_IFNAME": profile.interface, "GLOO_SOCKET_IFNAME": profile.interface}
    if profile.scratch:
        made["TMPDIR"] = profile.scratch
    return made | profile.environment
