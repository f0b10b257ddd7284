"""sbatch scripts that a person can read, from the template in `slurm/`. Everything a user named is quoted."""

from __future__ import annotations

import re
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launcher.profile import ClusterProfile
from onediff.errors import UserError

PLAIN = re.compile(r"[A-Za-z0-9_./,:=@+\[\]%-]+")
RISKY = re.compile(r"[\x00-\x1f\x7f\"'\\`$]")


class Script(NamedTuple):
    """One batch script: its parts, in the order in which they stand in the file."""

    title: str
    directives: list[str]
    environment: list[str]
    work: str
    command: list[str]


def template_folder() -> Path:
    """The `slurm` that came with this installation: of the checkout, or below `share/onediff` of the environment."""
    checkout = Path(__file__).parents[1] / "slurm"
    if checkout.is_dir():
        return checkout
    installed = Path(sysconfig.get_path("data")) / "share" / "onediff" / "slurm"
    return installed if installed.is_dir() else Path(sys.prefix) / "share" / "onediff" / "slurm"


def rendered(script: Script) -> str:
    """The text of the script file."""
    values = {
        "TITLE": one_line(script.title, "title"),
        "DIRECTIVES": "\n".join(f"#SBATCH {line}" for line in script.directives),
        "ENVIRONMENT": "\n".join(script.environment),
        "WORK": script.work,
        "COMMAND": " \\\n    ".join(broken(script.command)),
    }
    text = (template_folder() / "job.sbatch").read_text(encoding="utf-8")
    # One pass, so that a marker inside a value stays what it is.
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], text)


def broken(words: Sequence[str]) -> list[str]:
    """The quoted words of a command in lines of a readable length."""
    lines: list[str] = []
    for word in map(shlex.quote, words):
        if lines and len(lines[-1]) + len(word) < 100:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def directive(option: str, value: object) -> str:
    """`--option=value` as it may stand behind `#SBATCH`. Raises UserError for what Slurm could misread."""
    text = safe(str(value), f"--{option}")
    return f"--{option}={text}" if PLAIN.fullmatch(text) else f'--{option}="{text}"'


def safe(text: str, what: str) -> str:
    """`text`, unless quotes, `$`, backslashes or control characters in it could change a script."""
    found = RISKY.search(text)
    if found:
        raise UserError(f"{what} {text!r}: {found[0]!r} is not allowed here; choose a plainer name")
    return text


def one_line(text: str, what: str) -> str:
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise UserError(f"{what} {text!r}: must be one line")
    return text


def resource_directives(profile: ClusterProfile, nodes: str, tasks: int, gpus: int) -> list[str]:
    """What to ask Slurm for: `nodes` is a count or a range, `tasks` and `gpus` are those of a node."""
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
    """An option of the profile's `sbatch` as it may stand behind `#SBATCH`: a value with spaces is quoted."""
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
    """Shell lines that prepare the node: modules, setup, then variables, the profile's own last so that they win."""
    lines = [f"module load {' '.join(map(shlex.quote, profile.modules))}"] if profile.modules else []
    if profile.setup:  # what a site gives to be sourced seldom bears `set -u`
        lines += ["set +u", *(one_line(line, "setup") for line in profile.setup), "set -u"]
    if code is not None:
        lines.append(f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    return lines + [f"export {name}={shlex.quote(value)}" for name, value in variables(profile).items()]


def variables(profile: ClusterProfile) -> dict[str, str]:
    """The variables that a profile gives to every rank."""
    made: dict[str, str] = {}
    if profile.interface:
        made |= {"NCCL_SOCKET_IFNAME": profile.interface, "GLOO_SOCKET_IFNAME": profile.interface}
    if profile.scratch:
        made["TMPDIR"] = profile.scratch
    return made | profile.environment
