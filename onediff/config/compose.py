"""Reads a run's configuration: YAML composed from small files, with command-line overrides. Writes it back in full.

Composition has one rule: in any mapping, `base: FILE` starts from that file, and the other keys override it. A string
instead of a section is short for `base`, also on the command line (`model=models/tiny`). File names are resolved relative to
the file that names them, then in the project's `configs` folder; `.yaml` is optional. `model: FOLDER` may also name an
export, and then stands for a model of the same architecture.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from onediff.atomic import write_whole
from onediff.config.data import as_first_written
from onediff.config.renamed import under_new_names
from onediff.config.run import RunConfig
from onediff.config.saved import saved_model, saved_model_section
from onediff.config.section import nearest, validated
from onediff.config.yaml_file import read_mapping
from onediff.errors import UserError

SECTIONS = ("model", "data", "optimizer", "training", "phases", "parallel", "tracking", "evaluation")


def shipped_folder(name: str) -> Path:
    """A folder shipped with this installation: in the checkout, or below `share/onediff` in the environment."""
    checkout = Path(__file__).parents[2] / name
    if checkout.is_dir():
        return checkout
    installed = Path(sysconfig.get_path("data")) / "share" / "onediff" / name
    return installed if installed.is_dir() else Path(sys.prefix) / "share" / "onediff" / name


def configs_folder() -> Path:
    """The `configs` folder shipped with this installation."""
    return shipped_folder("configs")


def load_run(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    """Loads the configuration in `path`, a YAML file or a run folder, and applies `a.b=c` overrides in order.

    Raises UserError with one line that names the file or the override, the key, and the nearest known key.
    """
    file = find(str(path), Path.cwd())
    values = read_composed(file)
    if file.name == "config.yaml":
        values = under_new_names(values)
    if file.name == "config.yaml" and isinstance(data := values.get("data"), dict) and "prompt" in data:
        # In the folder of a run, the prompt must keep the meaning that it was trained with.
        data["prompt"] = as_first_written(data["prompt"])
    phases = list(_phases(values))
    for override in overrides:
        apply_override(values, override)
        _fill_named_sections(values, file)
    for name, phase in _phases(values).items():
        if name not in phases and isinstance(phase, dict) and "mix" not in phase:
            raise UserError(
                f"{' '.join(overrides)}: phases.{name} would be a new phase, which needs `mix`{nearest(name, phases)}"
            )
    if overrides:
        # The message blames the command line, not the file, for errors that only the overrides cause.
        _blame_override(values, file, overrides)
    return validated(RunConfig, values, str(path))


def _fill_named_sections(values: dict[str, Any], file: Path) -> None:
    """Replaces a section that an override gives by name (`model=models/tiny`) by the file's or export's section."""
    for section in SECTIONS:
        if not isinstance(named := values.get(section), str):
            continue
        if section == "model" and (folder := saved_model(named, Path.cwd())):
            values["model"] = saved_model_section(folder)
        else:
            values[section] = read_composed(find(named, file.parent))


def write_run(config: RunConfig, path: str | os.PathLike[str]) -> None:
    """Writes the complete configuration, including defaults."""
    write_whole(Path(path), as_yaml(config))


def as_yaml(config: RunConfig) -> str:
    """The complete configuration, including defaults."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def find(name: str, beside: Path) -> Path:
    """The file that `name` refers to in a configuration in the folder `beside`."""
    tried = []
    for folder in (beside, configs_folder()):
        # `demo` prefers a run folder `demo` over a `demo.yaml` next to it.
        for candidate in (folder / name, folder / name / "config.yaml", folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
            tried.append(candidate)
    # `configs/demo.yaml` works wherever the package is installed, not only in a checkout.
    if name.startswith("configs/") and (shipped := configs_folder() / name.removeprefix("configs/")).is_file():
        return shipped
    hint = "; it is a folder without config.yaml: name data sets under data.sets" if (beside / name).is_dir() else ""
    raise UserError(f"{name}: no such configuration (looked for {tried[0]} and in {configs_folder()}){hint}")


def read_composed(file: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in `file`, with every `base` and every section given as a file name resolved."""
    if file in above:
        raise UserError(f"{file}: `base` refers back to this file")
    return _filled(read_mapping(file), file, (*above, file), top=True)


def _filled(values: dict[str, Any], file: Path, above: tuple[Path, ...], top: bool = False) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if "base" in values:
        made = read_composed(find(str(values["base"]), file.parent), above)
    for key, value in values.items():
        if key == "base":
            continue
        if top and key == "model" and isinstance(value, str) and (folder := saved_model(value, file.parent)):
            made[key] = saved_model_section(folder)
            continue
        if top and key in SECTIONS and isinstance(value, str):
            value = {"base": value}
        if isinstance(value, dict):
            value = _filled(value, file, above)
        made[key] = merged(made.get(key), value)
    return made


def merged(old: Any, new: Any) -> Any:
    """Merges `new` into `old`: mappings key by key; anything else is replaced."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}
    return new


def apply_override(values: dict[str, Any], override: str) -> None:
    """Sets `a.b=c` in `values`; the right-hand side is parsed as YAML."""
    path, sign, text = override.partition("=")
    if not sign or not path:
        raise UserError(f"{override}: write an override as key.subkey=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, dict) and any(":" in str(key) and below is None for key, below in value.items()):
        raise UserError(f"{override}: YAML wants a space after each colon, as in {path}='{{key: value}}'")
    *parents, last = path.split(".")
    here = values
    for parent in parents:
        below = here.setdefault(parent, {})
        if not isinstance(below, dict):
            raise UserError(f"{override}: {parent!r} holds a value, not a section")
        here = below
    here[last] = merged(here.get(last), value) if isinstance(value, dict) else value


def _phases(values: dict[str, Any]) -> dict[str, Any]:
    """The phases of a configuration that has not been validated."""
    found = values.get("phases")
    return found if isinstance(found, dict) else {}


def _blame_override(values: dict[str, Any], file: Path, overrides: Sequence[str]) -> None:
    try:
        validated(RunConfig, values, " ".join(overrides))
    except UserError:
        validated(RunConfig, read_composed(file), str(file))
        raise
