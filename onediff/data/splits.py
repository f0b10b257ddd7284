"""Which data sets of a phase have a split."""

from __future__ import annotations

from pathlib import Path

from onediff.config.data import DataConfig, DataSet
from onediff.config.training import PhaseConfig
from onediff.data.manifest import read_manifest
from onediff.errors import UserError


def validated_sets(data: DataConfig, phase: PhaseConfig, phase_name: str) -> list[str]:
    """The data sets that a phase validates on: those in its settings, else those of its mix that have the split.

    Raises UserError if there is none.
    """
    split, named = phase.validation.split, phase.validation.sets
    found = [name for name in named or phase.mix if _has(data.sets[name], split)]
    if not found or (named and len(found) < len(named)):
        lacking = next(name for name in named or phase.mix if name not in found)
        there = sorted({p.parent.name for p in Path(data.sets[lacking].path).glob("[!.]*/manifest.json")})
        raise UserError(
            f"phases.{phase_name}.validation: the data set {lacking} has no split {split!r}"
            + (f"; set validation.split to one of {', '.join(there)}" if there else "")
        )
    return found


def _has(data_set: DataSet, split: str) -> bool:
    folder = data_set.model_copy(update={"split": split}).folder
    try:
        return read_manifest(folder).samples > 0
    except UserError:
        return False
