"""A cluster profile in one YAML file: what to request from Slurm, what the nodes need, and when to retry."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from launcher.environment import PLACE
from launcher.slurm import minutes
from onediff.config.section import Section, nearest, validated
from onediff.config.yaml_file import read_mapping
from onediff.errors import UserError
from onediff.plan.gpus import GPUS

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Container(Section):
    """The container image that training runs in; the job's supervisor runs outside it."""

    image: str
    """Path or registry address of the image."""
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """`pyxis` passes `--container-image` to srun; `apptainer` puts `apptainer exec --nv` before the command."""
    mounts: list[str] = []
    """Folders to mount, as `path` or `outside:inside`; the run folder always is mounted."""
    python: str = "python3"
    """Python inside the image."""


class SectionMinutes(Section):
    """Minutes that a part of a phase may go without progress; each batch, table or file in it counts as progress."""

    validation: float = Field(60, gt=0)
    """Loss on held-out rows."""
    evaluation: float = Field(60, gt=0)
    """Captioning a held-out split and scoring the captions."""
    captions: float = Field(30, gt=0)
    """Captioning a few pairs for people to look at."""
    saving: float = Field(60, gt=0)
    """A checkpoint."""
    export: float = Field(60, gt=0)
    """Exporting a model."""
    closing: float = Field(30, gt=0)
    """The end of a phase: last writes, the tracking server, waiting for the other ranks."""


class RequeueRule(Section):
    """When a failed attempt is retried."""

    restarts_without_progress: int = Field(3, ge=0)
    """Attempts in a row that may end without progress; one more stops the run."""
    node_failures: int = Field(2, ge=1)
    """Exclude a node after it has ended this many attempts."""
    slow_share: float | None = Field(0.2, gt=0)
    """A node is slow if one of its GPUs is slower than the median by this fraction, judged by a matrix product, its memory,
    the node's network (from four nodes on), and the wait for data. A spare replaces it at a checkpoint; without a spare, or
    with `null`, nothing happens."""
    slow_times: int = Field(5, ge=1)
    """Comparisons in a row that must name the same node. There is one every 20 steps."""
    hang_minutes: float = Field(20, gt=0)
    """Minutes without a step after which the ranks write their stacks and the attempt is ended."""
    start_minutes: float = Field(45, gt=0)
    """The same for the start of an attempt, until its first step: imports, weights and compilation take time."""
    section_minutes: SectionMinutes = SectionMinutes()
    """The same for everything else a phase does."""
    fence_seconds: float = Field(60, ge=0)
    """Seconds that a restart waits for ranks on a lost node to notice that they have been replaced; must exceed the cache
    lifetime of the shared folder."""


class KnownFailure(Section):
    """A failure known on this cluster, recognised by its message."""

    kind: str
    """Short name."""
    match: str
    """Regular expression, searched in the last lines of the log of the rank that failed first."""
    action: Literal["restart", "leave out", "stop", "stop at start"]
    """Restart, restart without the node, end the phase, or end it unless it has completed a step before."""
    advice: str = ""
    """What the user can do about it."""

    @field_validator("match")
    @classmethod
    def _is_expression(cls, text: str) -> str:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return text


class AlertSettings(Section):
    """Alerts about a run. At most one alert of each kind is sent every `minutes` minutes; secrets are masked."""

    webhook: str | None = None
    """URL that receives a POST of JSON with `text`, `event`, `run` and `phase`, or `$NAME` for a variable that holds it."""
    command: list[str] | None = None
    """Command that receives the same JSON on standard input."""
    events: list[Literal["failure", "hang", "restart", "spike", "no progress", "end"]] = []
    """Kinds of alerts to send; all by default."""
    minutes: float = Field(10, ge=0)
    """Minimum time between two alerts of one kind."""

    @field_validator("webhook")
    @classmethod
    def _is_address(cls, text: str | None) -> str | None:
        if text is not None and not re.match(r"https?://|\$[A-Za-z_]\w*$", text):
            raise ValueError("expected an http(s) URL, or $NAME for a variable that holds one")
        return text


class Preflight(Section):
    """What every node must pass before ranks start on it."""

    enabled: bool = True
    """Check nodes before each start."""
    seconds: float = Field(120, gt=0)
    """Time after which a node that has not answered fails the check."""
    free_memory_gb: float = Field(0, ge=0)
    """Minimum available memory of a node."""
    free_disk_gb: float = Field(1, ge=0)
    """Minimum free space in the run folder and in scratch."""
    latency_ms: float = Field(100, gt=0)
    """Maximum round-trip time of a small message between neighbouring nodes."""
    all_reduce: bool = False
    """Run an all-reduce through torch (NCCL on GPUs) on all ranks first; costs one more import of torch."""


class ClusterProfile(Section):
    """A cluster. Set only the values that your cluster requires."""

    description: str = ""
    """One-line description."""
    scheduler: Literal["slurm", "local"] = "slurm"
    """`slurm`, or `local` to run the phases on this machine without Slurm."""
    partition: str | None = None
    """One or more comma-separated partitions; Slurm's default if omitted."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    gpus_per_node: int = Field(0, ge=0)
    """GPUs per node, all of them used; 0 for a cluster without GPUs."""
    gpu_type: str | None = None
    """Type in Slurm's GPU request, such as `h100`."""
    gpu: str | None = None
    """GPU name as used by `onediff plan`, such as `h100-80g`. If set, a phase that would not fit is not queued."""
    tasks_per_node: int | None = Field(None, ge=1)
    """Ranks per node; one per GPU by default."""
    cpus_per_task: int = Field(1, ge=1)
    """CPUs per rank, including its data workers."""
    memory_per_task_gb: float | None = Field(None, gt=0)
    """Memory per rank; Slurm's default if omitted."""
    exclusive: bool = False
    """Request whole nodes."""
    time_limit: str = "24:00:00"
    """Time limit of one job; a run that needs longer is requeued."""
    warn_seconds: int = Field(180, ge=10, le=65535)
    """How long before the time limit Slurm sends SIGUSR1; must be enough for one checkpoint."""
    sbatch: list[str] = []
    """Additional sbatch options, one per line, such as `--reservation=spring`."""
    srun: list[str] = []
    """Additional srun options."""
    modules: list[str] = []
    """Environment modules to load."""
    setup: list[str] = []
    """Shell lines to run after loading the modules, such as `conda activate onediff` or `ulimit -n 65536`."""
    environment: dict[str, str] = {}
    """Environment variables for every rank: NCCL settings, proxies, caches."""
    interface: str | None = None
    """Network interface for rendezvous and gloo, such as `ib0`."""
    scratch: str | None = None
    """Node-local folder, used as TMPDIR."""
    cpu_bind: str = "none"
    """srun's `--cpu-bind`: `cores` pins a rank to its cores, `none` leaves placement to the kernel."""
    container: Container | None = None
    """Container for the ranks."""
    python: str | None = None
    """Python on the nodes; by default the one that submits."""
    command: list[str] | None = None
    """Command that starts `onediff` on a node; `PYTHON -m onediff` by default."""
    requeue: RequeueRule = RequeueRule()
    """When to retry."""
    preflight: Preflight = Preflight()
    """Checks that nodes must pass."""
    alerts: AlertSettings = AlertSettings()
    """Where to send alerts."""
    failures: list[KnownFailure] = []
    """Failures known on this cluster; they take precedence over those in `launcher/failures.py`."""

    @field_validator("time_limit")
    @classmethod
    def _is_time(cls, text: str) -> str:
        if not minutes(text):
            raise ValueError("must be a time limit of at least one minute")
        return text

    @field_validator("sbatch", "srun")
    @classmethod
    def _stays_on_this_cluster(cls, options: list[str]) -> list[str]:
        for option in options:
            if re.match(r"-M|--clusters?(=|\s|$)", option):
                raise ValueError(
                    f"{option!r}: jobs are followed by the controller of the cluster that submits; run "
                    "`onediff launch` on a login node of the other one, or with `--host`"
                )
        return options

    @field_validator("gpu")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in (known := [gpu.name for gpu in GPUS]):
            raise ValueError(f"unknown GPU {name!r}{nearest(name, known)}")
        return name

    @field_validator("environment")
    @classmethod
    def _are_variables(cls, variables: dict[str, str]) -> dict[str, str]:
        for name, value in variables.items():
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not a valid variable name")
            if "\0" in value or "\n" in value:
                raise ValueError(f"{name}: the value must be one line")
            if PLACE.fullmatch(name) and not name.startswith("MASTER_"):
                raise ValueError(f"{name}: is set by the launcher; remove it")
        return variables

    @model_validator(mode="after")
    def _has_tasks(self) -> ClusterProfile:
        if self.scheduler == "slurm" and not self.gpus_per_node and self.tasks_per_node is None:
            raise ValueError("set `gpus_per_node`, or `tasks_per_node` for a cluster without GPUs")
        return self

    @property
    def tasks(self) -> int:
        """Ranks per node."""
        return self.tasks_per_node or self.gpus_per_node or 1


def profile_folders(run: Path | None = None) -> list[Path]:
    """Folders searched for profiles, in order of precedence."""
    from onediff.config.compose import configs_folder

    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "onediff"
    return [*([run] if run else []), own, configs_folder() / "clusters"]


def load_profile(name: str, run: Path | None = None) -> ClusterProfile:
    """Load the profile from the file `name`, or from `NAME.yaml` in the run folder, `~/.config/onediff` or the package.

    Raises UserError naming the file, the key and the closest known name.
    """
    folders = profile_folders(run)
    candidates = [Path(name)] if name.endswith((".yaml", ".yml")) else [folder / f"{name}.yaml" for folder in folders]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        known = {path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")}
        if name == "default":
            raise UserError(
                f"there is no profile 'default'; name the cluster with --profile: {', '.join(sorted(known))}"
            )
        raise UserError(f"profile {name!r}: no such file{nearest(name, known)}")
    return validated(ClusterProfile, read_mapping(file), str(file))
