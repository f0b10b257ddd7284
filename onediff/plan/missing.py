"""Shards and pretrained models that a run needs but this machine lacks, each with the command to get it. Torch-free."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from onediff.config.addresses import is_url
from onediff.config.compose import configs_folder
from onediff.config.data import DataConfig
from onediff.config.model import ModelConfig
from onediff.config.run import RunConfig
from onediff.config.section import nearest
from onediff.config.training import InitConfig, PhaseConfig
from onediff.data.manifest import FILE, read_manifest
from onediff.data.splits import validated_sets
from onediff.errors import UserError
from onediff.hub.files import lacking
from onediff.hub.named import named_in
from onediff.runs.address import Address

PARTS = ("vision", "delta", "language")


class Missing(NamedTuple):
    """One input that a run needs and does not have."""

    kind: str
    """Its kind; missing inputs of the same kind may share a line."""
    name: str
    why: str
    fix: str
    """The command that provides it, or what to change."""


def missing_data(data: DataConfig, phases: Iterable[PhaseConfig], quick: bool = False) -> list[Missing]:
    """Data sets of `phases` that have no shards, or whose shards do not match their manifests.

    `quick` skips slow checks: it opens no URL and no tar that lacks a manifest.
    """
    found = []
    for name in dict.fromkeys(name for phase in phases for name in phase.mix):
        data_set = data.sets[name]
        folder = data_set.folder
        if quick and (is_url(str(folder)) or (Path(folder).is_dir() and not (Path(folder) / FILE).exists())):
            continue
        try:
            read_manifest(folder)
        except UserError as fault:
            why = str(fault).partition(";")[0]
            fix = f"fix data.sets.{name}"
            if not is_url(str(folder)):
                there = Path(folder).is_dir()
                fix = (
                    f"run: onediff data check {shlex.quote(str(folder))}" if there else maker(name, Path(data_set.path))
                )
            found.append(Missing("data set", name, why, fix))
    return found


def missing_splits(data: DataConfig, phases: Mapping[str, PhaseConfig]) -> list[Missing]:
    """Held-out splits that `phases` validate on and no data set has. Data sets that are not on this disk are not read."""
    found = []
    for name, phase in phases.items():
        places = [str(data.sets[one].path) for one in phase.validation.sets or phase.mix]
        if phase.validate_every is None or not all(Path(place).is_dir() for place in places):
            continue
        try:
            validated_sets(data, phase, name)
        except UserError as fault:
            why, _, fix = str(fault).partition("; ")
            found.append(Missing("split", phase.validation.split, why, fix or f"fix phases.{name}.validation"))
    return found


def missing_evaluated(config: RunConfig, phases: Iterable[str], after: bool) -> list[Missing]:
    """`evaluation.split`, if none of the data sets to caption has it: in one of `phases`, or `after` them all.

    Data sets that are not on this disk are not read.
    """
    split, last = config.evaluation.split, list(config.phases)[-1]
    evaluated = [name for name in phases if config.phases[name].evaluate_every is not None]
    for name in dict.fromkeys([*evaluated, *([last] if after else [])]):
        places = [Path(config.data.sets[one].path) for one in config.phases[name].mix]
        if any((place / split).is_dir() for place in places) or not all(place.is_dir() for place in places):
            continue
        there = {file.parent.name for place in places for file in place.glob(f"[!.]*/{FILE}")}
        fix = f"fix evaluation.split{nearest(split, there) if there else ''}"
        return [Missing("split", split, f"no data set of phase {name} has it", fix)]
    return []


def maker(name: str, folder: Path) -> str:
    """The command that creates the data set `name` in `folder`: DiffCap, rendered scenes, or the user's own data."""
    diffcap: dict[str, Any] = yaml.safe_load((configs_folder() / "diffcap.yaml").read_text(encoding="utf-8"))
    if folder.name in diffcap["parts"] and folder.parent == Path(diffcap["out"]):
        return "run: onediff data build configs/diffcap.yaml"
    if folder.parent.name == "scenes" and folder.name in ("pairs", "singles"):
        counts = "--pairs 36000 --singles 8000 --scenes configs/scenes/demo.yaml"
        return f"run: onediff data render --out {shlex.quote(str(folder.parent))} {counts}"
    return f"run: onediff data convert generic --table TABLE --out {shlex.quote(str(folder))}, or fix data.sets.{name}"


def missing_models(
    model: ModelConfig,
    init: InitConfig | None,
    typed: Sequence[str],
    begins: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> list[Missing]:
    """Missing weights, tokenizers and sources of `init`; `typed` is the configuration and its overrides as typed.

    A resumed run (`begins` is false) has its weights in checkpoints. `environ` locates the hub's cache.
    """
    sources = init.addresses if init is not None and begins else {}
    found = []
    for address in dict.fromkeys(sources.values()):
        try:
            Address.of(address).require()
        except UserError as fault:
            found.append(Missing("init", address, str(fault).partition(";")[0], "train it first, or change init"))
    parts = [part for part in PARTS if begins and part not in sources]
    for one in named_in(model, parts):
        if absent := lacking(one, one.folder(environ)):
            fix = f"fix {one.where}" if one.is_path else f"run: {shlex.join(['onediff', 'fetch', *typed])}"
            found.append(Missing("model", one.name, f"{one.where}: {', '.join(absent)}", fix))
    return found


def missing_lines(missing: Sequence[Missing]) -> Iterator[str]:
    """One line per fix, listing everything it fixes."""
    groups: dict[tuple[str, str], list[Missing]] = {}
    for one in missing:
        groups.setdefault((one.kind, one.fix), []).append(one)
    for (kind, fix), some in groups.items():
        if kind == "model":
            listed = ", ".join(f"{one.name} ({one.why})" for one in some)
        else:
            listed = f"{', '.join(one.name for one in some)} ({some[0].why}{', …' if len(some) > 1 else ''})"
        yield f"still missing: {kind}{'s' if len(some) > 1 else ''} {listed} → {fix}"
