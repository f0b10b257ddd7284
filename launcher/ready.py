"""Check before queueing that a run's inputs are available to its jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.plan import EVALUATE
from launcher.profile import ClusterProfile
from onediff.config.tracking import TrackingConfig
from onediff.config.training import OptimizerConfig, TrainingConfig
from onediff.errors import UserError

if TYPE_CHECKING:
    from onediff.config.data import DataConfig
    from onediff.config.model import ModelConfig
    from onediff.config.run import RunConfig

SECONDS = 600


def check_inputs(
    config: RunConfig,
    profile: ClusterProfile,
    phases: Sequence[str],
    said: Sequence[str],
    *,
    begins: bool = True,
    dry_run: bool = False,
    weights: bool = True,
) -> None:
    """Check the inputs of `phases` and build their model; `said` is the configuration and its overrides as typed.

    A resumed run (`begins` is false) has its weights in checkpoints. Missing shards, pretrained models and sources of
    `init` raise UserError, or are only listed in a dry run. What training would refuse of these phases raises UserError
    too. Without `weights`, models are not checked: the nodes download them.
    """
    from onediff.plan.missing import missing_data, missing_evaluated, missing_lines, missing_models, missing_splits

    trained = [phase for phase in phases if phase != EVALUATE]
    left = {name: config.phases[name] for name in trained}
    missing = [*missing_data(config.data, left.values()), *missing_splits(config.data, left)]
    missing += missing_evaluated(config, trained, after=EVALUATE in phases)
    environ = {**os.environ, **profile.environment}
    models = missing_models(config.model, config.init, said, begins, environ) if weights and trained else []
    note_container(config.model, config.data, profile)
    if missing or models:
        lines = list(missing_lines([*missing, *models]))
        if not dry_run:
            raise UserError("; ".join(lines))
        print(*lines, sep="\n", file=sys.stderr)
    if weights:
        require_fit(config, phases, not begins, profile.environment)


def require_fit(config: RunConfig, phases: Sequence[str], begun: bool, environment: Mapping[str, str]) -> None:
    """Raise UserError for what training would refuse of those of `phases` that train; `begun` as in `dry_build.faults`."""
    trained = [phase for phase in phases if phase != EVALUATE]
    if trained and (wrong := unfit(as_checked(config, trained), begun, tuple(sorted(environment.items())))):
        raise UserError("; ".join(wrong))


def as_checked(config: RunConfig, phases: Sequence[str]) -> str:
    """The configuration of `phases` as JSON, without what `unfit` does not depend on: a sweep checks its model once."""
    others = {"optimizer": OptimizerConfig(), "training": TrainingConfig(), "tracking": TrackingConfig()}
    left = {name: config.phases[name] for name in phases}
    return config.model_copy(update={"name": "checked", "phases": left, **others}).model_dump_json()


def offline(model: ModelConfig, profile: ClusterProfile) -> ClusterProfile:
    """The profile for ranks that have all models on disk: they never contact the hub, which may be unreachable."""
    from onediff.hub.named import named_in

    if all(one.is_path for one in named_in(model)):
        return profile
    return profile.model_copy(update={"environment": {"HF_HUB_OFFLINE": "1", **profile.environment}})


@lru_cache(maxsize=8)
def unfit(config: str, begun: bool, environment: tuple[tuple[str, str], ...]) -> list[str]:
    """What training would refuse of the configuration and, unless the run has `begun`, of its pretrained models.

    Asks a process that imports torch. Empty, with a note, if torch is not installed.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "onediff.training.dry_build", *(["--begun"] * begun)],
            input=config,
            env={**os.environ, **dict(environment), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = error.stderr if isinstance(error.stderr, str) else ""
        why = (said.strip().splitlines() or [f"no answer from {sys.executable}"])[-1]
        print(f"not checked whether the model can be built: {why}", file=sys.stderr)
        return []
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def note_container(model: ModelConfig, data: DataConfig, profile: ClusterProfile) -> None:
    """Warn about folders that the ranks cannot see because they are outside the container's mounts."""
    from onediff.config.addresses import is_url
    from onediff.hub.named import cache_folder, named_in

    container = profile.container
    if container is None:
        return
    mounts = [Path(mount.partition(":")[0]) for mount in container.mounts]
    named = named_in(model)
    read = [Path(data_set.path).parent for data_set in data.sets.values() if not is_url(str(data_set.path))]
    read += [Path(one.name) for one in named if one.is_path]
    read += [cache_folder({**os.environ, **profile.environment})] if any(not one.is_path for one in named) else []
    hidden = [path for path in dict.fromkeys(read) if not any(path.absolute().is_relative_to(m) for m in mounts)]
    if hidden:
        print(
            f"outside container.mounts, so check that the container runtime shows it: {', '.join(map(str, hidden))}",
            file=sys.stderr,
        )
