"""Whether all that a run will read can be read from where its jobs run, before anything is queued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.plan import EVALUATE
from launcher.profile import ClusterProfile
from onediff.errors import UserError

if TYPE_CHECKING:
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
    """Shards, pretrained models and what `init` names, for `phases`; `said` is the configuration with its overrides.

    A run that goes on (`begins` is false) has its weights in checkpoints. What is missing is listed by a dry run, and raises
    UserError else; so does what is here and does not fit. Without `weights`, models are left to the nodes.
    """
    from onediff.hub.named import named_in
    from onediff.plan.missing import PARTS, missing_data, missing_models, told

    trained = [phase for phase in phases if phase != EVALUATE]
    if not trained:
        return
    missing = missing_data(config, trained)
    environ = {**os.environ, **profile.environment}
    models = missing_models(config, said, begins, environ) if weights else []
    note_container(config, profile)
    if missing or models:
        lines = list(told([*missing, *models]))
        if not dry_run:
            raise UserError("; ".join(lines))
        print(*lines, sep="\n", file=sys.stderr)
    if not weights or models:
        return
    sources = config.init.addresses if config.init is not None else {}
    parts = [part for part in PARTS if begins and part not in sources]
    if named_in(config.model, parts):
        wrong = unfit(config.model_dump_json(), tuple(parts), tuple(sorted(profile.environment.items())))
        if wrong:
            raise UserError("; ".join(wrong))


def offline(config: RunConfig, profile: ClusterProfile) -> ClusterProfile:
    """The profile for ranks that have all models on their disks: none of them asks the hub, which may be out of reach."""
    from onediff.hub.named import named_in

    if all(one.is_path for one in named_in(config.model)):
        return profile
    return profile.model_copy(update={"environment": {"HF_HUB_OFFLINE": "1", **profile.environment}})


@lru_cache(maxsize=8)
def unfit(config: str, parts: tuple[str, ...], environment: tuple[tuple[str, str], ...]) -> list[str]:
    """What of the pretrained models does not fit the configuration, in a process of its own: torch takes seconds.

    Nothing, with a note, where there is no torch on this machine.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "onediff.model.readable", *parts],
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
        print(f"the headers of weights are not compared with the configuration: {why}", file=sys.stderr)
        return []
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def note_container(config: RunConfig, profile: ClusterProfile) -> None:
    """Says which folders the ranks will not find where the container's mounts are all that they see."""
    from onediff.config.addresses import is_url
    from onediff.hub.named import cache_folder, named_in

    container = profile.container
    if container is None:
        return
    mounts = [Path(mount.partition(":")[0]) for mount in container.mounts]
    named = named_in(config.model)
    read = [Path(data_set.path).parent for data_set in config.data.sets.values() if not is_url(str(data_set.path))]
    read += [Path(one.name) for one in named if one.is_path]
    read += [cache_folder({**os.environ, **profile.environment})] if any(not one.is_path for one in named) else []
    hidden = [path for path in dict.fromkeys(read) if not any(path.absolute().is_relative_to(m) for m in mounts)]
    if hidden:
        print(
            f"not below container.mounts, so look whether the image's runtime shows it: {', '.join(map(str, hidden))}",
            file=sys.stderr,
        )
