"""Freeze a run into its folder, so that its jobs read nothing that can change while they are queued."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import frozen
from launcher.plan import EVALUATE, phase_script
from launcher.profile import ClusterProfile
from launcher.record import Json, Record, own_mark, write_json
from launcher.render import rendered
from onediff.errors import UserError

if TYPE_CHECKING:
    from onediff.config.run import RunConfig


def check_same(record: Record, config: RunConfig) -> None:
    """Raise UserError if the folder holds a run with another configuration."""
    run = record.run
    if (run / "config.yaml").is_file() and (record.jobs() or record.status()):
        from onediff.config.compose import load_run
        from onediff.config.difference import differences, flat, in_one_line

        if (before := load_run(str(run / "config.yaml"))) != config:
            changed = differences(*(flat(one.model_dump(mode="json")) for one in (before, config)))
            raise UserError(
                f"run folder {run}: holds a run with another configuration ({in_one_line(changed)}); choose another "
                f"name or --run, or resume that one with `onediff launch resume {run}`"
            )


def check_writable(run: Path) -> None:
    """Create the run folder if it is missing. Raises UserError if it cannot be written."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe = run / f".tmp-submit-{own_mark()}"
        probe.write_text("writable")
        probe.unlink()
    except OSError as error:
        raise UserError(f"run folder {run}: cannot be written: {error.strerror}") from None


def freeze(record: Record, config: RunConfig, plan: Json, profile: ClusterProfile, code: bool) -> None:
    """Write configuration, plan, profile, code and a description of the environment into the run folder."""
    from onediff.config.compose import write_run

    record.folder.mkdir(exist_ok=True)
    record.logs.mkdir(exist_ok=True)
    write_run(config, record.run / "config.yaml")
    # Keep phases from earlier submissions that are not part of this one.
    parts = {**record.plan().get("phases", {}), **plan["phases"]}
    write_json(record.plan_file, {**plan, "phases": {n: parts[n] for n in [*config.phases, EVALUATE] if n in parts}})
    write_json(record.folder / "profile.json", profile.model_dump(mode="json"))
    if code or not (record.folder / "code").is_dir():
        freeze_code(record.folder)
    frozen.add_starter(record.folder / "code")  # older versions froze none


def freeze_data(record: Record, collection: Json | None, plan: Json, profile: ClusterProfile) -> None:
    """The same for a data job. Deletes notes of earlier tasks, since each task finds finished chunks by itself."""
    import yaml

    record.folder.mkdir(exist_ok=True)
    record.logs.mkdir(exist_ok=True)
    shutil.rmtree(record.folder / "exits", ignore_errors=True)
    if collection is not None:
        (record.folder / "collection.yaml").write_text(yaml.safe_dump(collection, sort_keys=False), encoding="utf-8")
    write_json(record.plan_file, plan)
    write_json(record.folder / "profile.json", profile.model_dump(mode="json"))
    freeze_code(record.folder)


def freeze_code(folder: Path) -> None:
    """Copy the packages, so that a job queued for days runs the code that was submitted, and record their origin."""
    import onediff
    from onediff.config.compose import shipped_folder
    from onediff.tracking.provenance import start_tags, uncommitted

    aside, code = folder / f".tmp-code-{own_mark()}", folder / "code"
    house = Path(onediff.__file__).parents[1]
    leave = shutil.ignore_patterns("__pycache__", ".tmp-*")
    for package in ("onediff", "launcher", "data_prep"):
        shutil.copytree(house / package, aside / package, ignore=leave)
    for shipped in ("configs", "slurm"):
        shutil.copytree(shipped_folder(shipped), aside / shipped, ignore=leave)
    frozen.add_starter(aside)
    shutil.rmtree(code, ignore_errors=True)
    aside.rename(code)
    frozen.note_digest(folder)
    write_json(folder / "environment.json", start_tags())
    (folder / "uncommitted.diff").write_text(uncommitted(1_000_000), encoding="utf-8")


def write_scripts(
    record: Record, plan: Json, profile: ClusterProfile, phases: Sequence[str], comment: str | None
) -> list[Path]:
    """Write one script per phase into `<run>/launch`."""
    files = []
    for phase in phases:
        file = record.folder / f"{phase}.sbatch"
        file.write_text(rendered(phase_script(plan, profile, phase, comment)), encoding="utf-8")
        files.append(file)
    return files
