"""The table of contents of a checkpoint: its files, and the location of each range of each parameter.

A checkpoint is a folder of safetensors files, one per rank that wrote it, and `manifest.json`. Any number of ranks can read
it. The keys of a file are `weight/<parameter>`, `exp_avg/<parameter>`, …: one flat range each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from onediff.atomic import write_whole
from onediff.data.manifest import file_sha256
from onediff.errors import UserError
from onediff.parallel.block import BlockRange
from onediff.runs.copies import bring
from onediff.training.checkpoint.files import Files
from onediff.training.checkpoint.table import RangeRun, near

SCHEMA, RUNS_SCHEMA, COLUMNS_SCHEMA = 1, 2, 3
"""Manifest formats: every range listed; runs of ranges; runs of ranges, and files in columns."""
FILE = "manifest.json"
WEIGHT = "weight"


@dataclass
class StoredParameter:
    """One parameter: its full shape, its stored states, and the ranges that make it up."""

    shape: tuple[int, ...]
    dtype: str
    dim: int
    """dimension along which its blocks were cut"""
    states: list[str]
    """`weight`, then the optimizer's names of its moments; only `weight` if it is frozen"""
    steps: int | None
    """optimizer steps taken on it"""
    pieces: list[tuple[str, int, int, int, int]]
    """listed ranges: file, block start, block size, offset in the block, length"""
    runs: list[RangeRun] = field(default_factory=list)
    """runs of ranges of many ranks at equal distances"""

    def __post_init__(self) -> None:
        self.runs = [RangeRun(*run) for run in self.runs]

    @property
    def numel(self) -> int:
        """Number of elements of the full parameter."""
        return prod(self.shape)

    def near(self, target: BlockRange, files: Sequence[str]) -> Iterator[tuple[str, BlockRange]]:
        """File and location of the stored ranges that may overlap `target`, and of a few others."""
        return near(tuple(self.shape), self.dim, self.pieces, self.runs, files, target)

    def to_json(self) -> dict[str, Any]:
        """All fields; `runs` only if there are any."""
        fields = dict(vars(self))
        return fields if self.runs else {key: value for key, value in fields.items() if key != "runs"}


@dataclass
class CheckpointManifest:
    """The content of `manifest.json`."""

    identity: str
    """random id, the same in every file of a checkpoint"""
    step: int
    world: int
    tensor: int
    zero_stage: int
    extra: dict[str, Any]
    """the caller's own data: data positions, schedule, tracking run, …"""
    groups: list[dict[str, Any]]
    """hyper-parameters of the optimizer's parameter groups"""
    parameters: dict[str, StoredParameter]
    buffers: list[str] = field(default_factory=list)
    files: Files = field(default_factory=lambda: Files([], ""))
    schema: int = SCHEMA
    context: int = 1

    def write(self, folder: Path) -> None:
        """Writes the manifest and waits until it is on disk."""
        write_whole(folder / FILE, json.dumps(self.to_json(), separators=(",", ":")), durable=True)

    def to_json(self) -> dict[str, Any]:
        """All fields. Manifests that older versions cannot read have a higher schema."""
        parameters = {name: parameter.to_json() for name, parameter in self.parameters.items()}
        many = any(parameter.runs for parameter in self.parameters.values())
        schema = SCHEMA if not many else COLUMNS_SCHEMA if self.files.ranked else RUNS_SCHEMA
        files = self.files.to_json(columns=schema == COLUMNS_SCHEMA)
        fields = {**vars(self), "parameters": parameters, "files": files, "schema": schema}
        # Older versions do not know the field.
        return fields if self.context > 1 else {key: value for key, value in fields.items() if key != "context"}

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(self.files.sizes)


def read_manifest(path: Path) -> CheckpointManifest:
    """The manifest of the checkpoint at `path`. Raises UserError if there is none or another program wrote it."""
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint")
    file = path / FILE
    if not file.is_file():
        raise UserError(f"{path}: no {FILE}: not a OneDiff checkpoint, or one that was never finished")
    try:
        content = json.loads(file.read_text())
    except ValueError:
        raise UserError(f"{file}: damaged or cut short{instead_of(path)}") from None
    if not isinstance(content, dict) or "identity" not in content or "schema" not in content:
        raise UserError(f"{file}: not a manifest of a OneDiff checkpoint")
    if content["schema"] not in (SCHEMA, RUNS_SCHEMA, COLUMNS_SCHEMA):
        raise UserError(
            f"{file}: has format {content['schema']}; this version of OneDiff reads formats {SCHEMA} to {COLUMNS_SCHEMA}"
        )
    try:
        parameters = {name: StoredParameter(**values) for name, values in content.pop("parameters").items()}
        files = Files.of_json(content.pop("files"))
        return CheckpointManifest(**content, parameters=parameters, files=files)
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{file}: incomplete{instead_of(path)}") from None


def instead_of(folder: Path) -> str:
    """Advice for an unusable checkpoint, to end an error message."""
    return f"; delete the folder {folder} to resume from the checkpoint before it"


def check_file(folder: Path, name: str, manifest: CheckpointManifest) -> None:
    """Raises UserError if the file `name` is missing, truncated, changed, or of another checkpoint."""
    from safetensors import SafetensorError, safe_open

    path, record = folder / name, manifest.files[name]
    if not bring(path):
        raise UserError(f"{path}: missing from the checkpoint{instead_of(folder)}")
    size = path.stat().st_size
    if size < record.bytes:
        raise UserError(f"{path}: cut short, {size} of {record.bytes} bytes{instead_of(folder)}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: not readable as safetensors: {error}{instead_of(folder)}") from None
    if metadata.get("identity") != manifest.identity:
        other = f"step {metadata['step']} of another save" if "step" in metadata else "another program"
        raise UserError(f"{path}: belongs to {other}, not to this checkpoint{instead_of(folder)}")
    if size != record.bytes or file_sha256(path) != record.sha256:
        raise UserError(f"{path}: damaged, its checksum differs from the manifest's{instead_of(folder)}")


def verify_checkpoint(path: Path) -> CheckpointManifest:
    """Reads and checks every file of a checkpoint; returns its manifest. Raises UserError that names the first fault."""
    path = Path(path)
    manifest = read_manifest(path)
    for name in manifest.files:
        check_file(path, name, manifest)
    return manifest
