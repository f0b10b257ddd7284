"""A cluster in one YAML file: what to ask Slurm for, what the nodes need, and when to try again."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from launcher.environment import PLACE
from launcher.slurm import minutes
from onediff.config.section import Section, nearest, validated
from onediff.errors import UserError
from onediff.plan.gpus import GPUS

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Container(Section):
    """The image in which training runs; the job's supervisor runs outside it."""

    image: str
    """File or registry address of the image."""
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """`pyxis` passes `--container-image` to srun; `apptainer` puts `apptainer exec --nv` before the command."""
    mounts: list[str] = []
    """Folders seen inside, as `path` or `outside:inside`; the run folder always is."""
    python: str = "python3"
    """Python inside the image."""


class SectionMinutes(Section):
    """Minutes for which a part of a phase may go on without moving; each batch, table or file of it counts as a move."""

    validation: float = Field(60, gt=0)
    """The loss of held-out rows."""
    evaluation: float = Field(60, gt=0)
    """Captions of a held-out split and their scores."""
    captions: float = Field(30, gt=0)
    """Captions of a few pairs, for people."""
    saving: float = Field(60, gt=0)
    """A checkpoint."""
    export: float = Field(60, gt=0)
    """A saved model."""
    closing: float = Field(30, gt=0)
    """The end of a phase: the last writes, the tracking server, the other ranks."""


class RequeueRule(Section):
    """When an attempt that ended badly is tried again."""

    restarts_without_progress: int = Field(3, ge=0)
    """Attempts in a row that may end without reaching a further step; one more stops the run."""
    node_failures: int = Field(2, ge=1)
    """A node that ended this many attempts is excluded."""
    slow_share: float | None = Field(0.2, gt=0)
    """A node is slow if one of its GPUs is behind the median one by this share, by the same matrix product on each and the
    wait for data. A spare takes its place at a checkpoint; without a spare, or with `null`, nothing is done."""
    slow_times: int = Field(5, ge=1)
    """Comparisons in a row that must name the same node; there is one every 20 steps."""
    hang_minutes: float = Field(20, gt=0)
    """Minutes without a step after which the stacks of all ranks are written and the attempt is ended."""
    start_minutes: float = Field(45, gt=0)
    """The same for the start of an attempt, until its first step: imports, weights and compilers take their time."""
    section_minutes: SectionMinutes = SectionMinutes()
    """The same for what else a phase does."""
    fence_seconds: float = Field(60, ge=0)
    """Longest wait before a restart for ranks that live on, on a node that Slurm lost, to see that they are replaced; more
    than the shared folder's caches keep."""


class KnownFailure(Section):
    """A failure of this cluster, known by what it prints."""

    kind: str
    """Its name, in a word or two."""
    match: str
    """Regular expression, searched in each of the last lines of the log of the rank that failed first."""
    action: Literal["restart", "leave out", "stop", "stop at start"]
    """Start again, start again without the node, end the phase, or end it unless it has made a step before."""
    advice: str = ""
    """What a user can do about it."""

    @field_validator("match")
    @classmethod
    def _is_expression(cls, text: str) -> str:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return text


class AlertSettings(Section):
    """Word of what happens to a run. At most one alert of a kind goes out in `minutes`; secrets are masked."""

    webhook: str | None = None
    """URL that takes a POST of JSON with `text`, `event`, `run` and `phase`, or `$NAME` for a variable that holds it."""
    command: list[str] | None = None
    """Command that gets the same JSON on its standard input."""
    events: list[Literal["failure", "hang", "restart", "spike", "no progress", "end"]] = []
    """Kinds that are told; all by default."""
    minutes: float = Field(10, ge=0)
    """Shortest pause between two alerts of one kind."""

    @field_validator("webhook")
    @classmethod
    def _is_address(cls, text: str | None) -> str | None:
        if text is not None and not re.match(r"https?://|\$[A-Za-z_]\w*$", text):
            raise ValueError("expected an http(s) URL, or $NAME for a variable that holds one")
        return text


class Preflight(Section):
    """What every node must show before ranks are started on it."""

    enabled: bool = True
    """Check nodes at each start."""
    seconds: float = Field(120, gt=0)
    """A node that has not answered by then has failed."""
    free_memory_gb: float = Field(0, ge=0)
    """Least available memory of a node."""
    free_disk_gb: float = Field(1, ge=0)
    """Least free space in the run folder and in scratch."""
    latency_ms: float = Field(100, gt=0)
    """Longest round trip of a small message between a node and its neighbour."""
    all_reduce: bool = False
    """Let the ranks of every node sum a tensor through torch (NCCL on GPUs) first; costs one more import of torch."""


class ClusterProfile(Section):
    """One cluster. Every value may stay at its default but those that the cluster insists on."""

    description: str = ""
    """One line for people."""
    scheduler: Literal["slurm", "local"] = "slurm"
    """`local` runs the same phases as processes of this machine, without Slurm."""
    partition: str | None = None
    """Partition, or several with commas between; Slurm's default one otherwise."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    gpus_per_node: int = Field(0, ge=0)
    """GPUs of a node, all of them used; 0 for a cluster without GPUs."""
    gpu_type: str | None = None
    """Type in Slurm's GPU request, such as `h100`."""
    gpu: str | None = None
    """Kind of GPU as `onediff plan` knows it, such as `h100-80g`: a phase that would not fit is then not queued."""
    tasks_per_node: int | None = Field(None, ge=1)
    """Ranks a node; one per GPU by default."""
    cpus_per_task: int = Field(1, ge=1)
    """CPUs of a rank, its data workers included."""
    memory_per_task_gb: float | None = Field(None, gt=0)
    """Memory of a rank; Slurm's default otherwise."""
    exclusive: bool = False
    """Ask for whole nodes."""
    time_limit: str = "24:00:00"
    """Time limit of one job; a run that needs longer is queued again."""
    warn_seconds: int = Field(180, ge=10, le=65535)
    """SIGUSR1 comes this long before the time limit: time for one checkpoint."""
    sbatch: list[str] = []
    """Any further sbatch options, one a line, such as `--reservation=spring`."""
    srun: list[str] = []
    """Any further srun options."""
    modules: list[str] = []
    """Environment modules to load."""
    setup: list[str] = []
    """Lines of shell that prepare a node after the modules, such as `conda activate onediff` or `ulimit -n 65536`."""
    environment: dict[str, str] = {}
    """Variables for every rank: NCCL settings, proxies, caches."""
    interface: str | None = None
    """Network interface for rendezvous and gloo, such as `ib0`."""
    scratch: str | None = None
    """Node-local folder, becomes TMPDIR."""
    cpu_bind: str = "none"
    """srun's `--cpu-bind`: `cores` keeps a rank on its cores, `none` leaves it to the kernel."""
    container: Container | None = None
    """Image for the ranks."""
    python: str | None = None
    """Python on the nodes; the one that submits otherwise."""
    command: list[str] | None = None
    """How `onediff` is started on a node, when not as `PYTHON -m onediff`."""
    requeue: RequeueRule = RequeueRule()
    """When to try again."""
    preflight: Preflight = Preflight()
    """What nodes must show."""
    alerts: AlertSettings = AlertSettings()
    """Whom to tell."""
    failures: list[KnownFailure] = []
    """Failures known here, asked before those that `launcher/failures.py` lists."""

    @field_validator("time_limit")
    @classmethod
    def _is_time(cls, text: str) -> str:
        if not minutes(text):
            raise ValueError("must be a limit of at least a minute")
        return text

    @field_validator("gpu")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in (known := [gpu.name for gpu in GPUS]):
            raise ValueError(f"{name!r} is not known{nearest(name, known)}")
        return name

    @field_validator("environment")
    @classmethod
    def _are_variables(cls, variables: dict[str, str]) -> dict[str, str]:
        for name, value in variables.items():
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a variable")
            if "\0" in value or "\n" in value:
                raise ValueError(f"{name}: a value is one line")
            if PLACE.fullmatch(name) and not name.startswith("MASTER_"):
                raise ValueError(f"{name}: tells a rank its place, which the launcher does")
        return variables

    @model_validator(mode="after")
    def _has_tasks(self) -> ClusterProfile:
        if self.scheduler == "slurm" and not self.gpus_per_node and self.tasks_per_node is None:
            raise ValueError("give `gpus_per_node`, or `tasks_per_node` for a cluster without GPUs")
        return self

    @property
    def tasks(self) -> int:
        """Ranks a node."""
        return self.tasks_per_node or self.gpus_per_node or 1


def profile_folders(run: Path | None = None) -> list[Path]:
    """Where profiles are looked for, nearest first."""
    from onediff.config.compose import configs_folder

    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "onediff"
    return [*([run] if run else []), own, configs_folder() / "clusters"]


def load_profile(name: str, run: Path | None = None) -> ClusterProfile:
    """The profile in the file `name`, or `NAME.yaml` in the run folder, `~/.config/onediff` or the shipped ones.

    Raises UserError that names the file, the key and the nearest known name.
    """
    import yaml

    folders = profile_folders(run)
    candidates = [Path(name)] if name.endswith((".yaml", ".yml")) else [folder / f"{name}.yaml" for folder in folders]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        known = {path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")}
        raise UserError(f"profile {name!r}: no such file{nearest(name, known)}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a mapping of keys to values")
    return validated(ClusterProfile, values, str(file))
