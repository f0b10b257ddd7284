"""Rebuilds the addresses of artifacts, which are full paths, in an embedded store whose folder was moved or copied."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlflow-artifacts"
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's SQL stores that hold addresses of artifacts."""


def former_places(database: Path) -> list[Path]:
    """Missing artifact folders that a store names, if a folder of that name is next to the store."""
    if not database.is_file() or not (here := database.parent / ARTIFACTS).is_dir():
        return []
    with closing(sqlite3.connect(database)) as store:
        known = {address for (address,) in store.execute("SELECT artifact_location FROM experiments") if address}
    folders = {Path(unquote(urlsplit(one).path)) for one in known if one.startswith("file:")}
    return sorted(one for one in folders if one.name == ARTIFACTS and one != here and not one.exists())


def readdress(database: Path) -> int:
    """Redirects every address of a missing folder to the one next to the store; returns how many were changed."""
    changed = 0
    for former in former_places(database):
        old, new = former.as_uri(), (database.parent / ARTIFACTS).as_uri()
        with closing(sqlite3.connect(database, timeout=60)) as store, store:
            there = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table, column in (one for one in ADDRESSES if one[0] in there):
                made = store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR {column} LIKE ?",
                    (new, len(old) + 1, old, f"{old}/%"),
                )
                changed += made.rowcount
    return changed


def is_running(database: Path) -> bool:
    """Whether a run in the store is marked as running: its machine may still use the old path."""
    with closing(sqlite3.connect(database)) as store:
        found = store.execute("SELECT 1 FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active' LIMIT 1")
        return found.fetchone() is not None
