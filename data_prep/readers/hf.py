"""Data sets in the forms of Hugging Face's `datasets`: on the hub, as tables, by save_to_disk, or as an imagefolder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers import Inputs, Reader, Row
from data_prep.readers.batches import Meaning, RowBatch, batches_of
from data_prep.readers.columns import Columns
from data_prep.readers.files import load_json
from data_prep.readers.tables import KINDS, columns_of_all
from data_prep.splits import split_in
from onediff.errors import UserError

ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
"""JSON files that are not tables."""
PATTERNS = [f"**/*{kind}" for kind in KINDS] + [f"**/*.{kind}" for kind in ("jpg", "jpeg", "png", "webp", "zip", "tar")]
"""File patterns fetched from a data set on the hub; never code."""


def batches(inputs: Inputs) -> Iterator[RowBatch]:
    base = inputs.annotations
    if base is None:
        raise UserError(
            "hf: name a folder, tables, or a data set of the hub, as in 'onediff data convert hf OWNER/NAME'"
        )
    tables = tables_in(base)
    columns = Columns.found(columns_of_all([table for table, _ in tables]), inputs.columns, base)
    root = inputs.images or base
    for table, split in tables:
        # A metadata file's images are next to it; other tables name images relative to the root.
        is_beside = table.stem == "metadata" and table.parent != root
        beside = str(table.parent.relative_to(root)) if is_beside else ""
        yield from batches_of(table, Meaning(table.name, columns, split, beside))


def rows(inputs: Inputs) -> Iterator[Row]:
    return (row for batch in batches(inputs) for row in batch.rows())


def tables_in(base: Path) -> list[tuple[Path, str]]:
    """The tables of a data set and the split of each. Raises UserError if there are none."""
    if base.is_file():
        return [(base, split_in(base.name))]
    if not base.is_dir():
        found = sorted(path for path in base.parent.glob(base.name) if path.suffix in KINDS)
        if not found:
            raise UserError(f"{base}: no such table")
        return [(path, split_in(path.name)) for path in found]
    if (base / "dataset_dict.json").is_file():
        splits = load_json(base / "dataset_dict.json").get("splits", [])
        return [(path, split) for split in splits for path in _saved(base / split)]
    if (base / "state.json").is_file():
        return [(path, "train") for path in _saved(base)]
    tables = sorted(path for path in base.rglob("*") if path.suffix.lower() in KINDS and path.name not in ABOUT)
    tables = [path for path in tables if not any(part.startswith(".") for part in path.relative_to(base).parts)]
    metadata = [path for path in tables if path.stem == "metadata"]
    for kind in ((".parquet",), (".arrow",), KINDS):  # of two forms of a table, the one that `datasets` reads
        if some := [path for path in metadata or tables if path.suffix.lower() in kind]:
            return [(path, split_in(str(path.relative_to(base)))) for path in some]
    raise UserError(f"{base}: no tables here; expected {READER.layout}")


def _saved(folder: Path) -> list[Path]:
    """The files that `save_to_disk` wrote, in order."""
    state = load_json(folder / "state.json")
    return [folder / Path(file["filename"]).name for file in state.get("_data_files", [])]


def fetched(name: str) -> Path:
    """The folder of a data set on the hub, fetched if necessary. Raises UserError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{name}: neither a folder here nor a data set of the hub that can be fetched ({reason})"
        ) from None


READER = Reader(
    name="hf",
    summary="a data set of the Hugging Face hub, or a folder that `datasets` wrote",
    source="",
    licence="",
    layout="OWNER/NAME on the hub, or --annotations DIR: save_to_disk, data/<split>-*.parquet, or metadata.jsonl (or .csv, "
    ".parquet) with file_name next to the images; columns as in 'generic', images inside the table or named in it",
    rows=rows,
    batches=batches,
)
