"""Downloads the models that a configuration names, and checks them against the hub's sizes and digests."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # raised by the library's HTTP client for connection errors
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from onediff.errors import UserError
from onediff.hub.files import lacking, needed
from onediff.hub.named import Named

CHUNK = 1 << 24


def fetch(repository: list[Named], to: Path | None = None) -> Path:
    """Downloads missing files of a repository and returns their folder. All items of `repository` name the same one.

    Files go to the hub's cache, or as plain files to a folder below `to`. Interrupted downloads continue where they stopped.
    If the hub cannot be reached, all files must already be here. Raises UserError if anything is unavailable.
    """
    name, revision = repository[0].name, repository[0].revision
    own = folder_below(to, name, revision) if to is not None else None
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError, ValueError) as error:
        raise UserError(f"{repository[0].where}: {refused(name, revision, error)}") from None
    except (HTTPError, OSError) as error:
        return already_here(repository, own, error)
    files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    weights = any(one.weights for one in repository)

    def bring(file: str) -> Path:
        return brought(name, revision, files[file], own)

    wanted = needed(files, weights, bring)
    size = sum(files[file].size or 0 for file in wanted if file in files)
    print(f"{name} ({', '.join(one.where for one in repository)}): {len(wanted)} files, {size / 1e9:.2f} GB")
    check_space(own or Path(constants.HF_HUB_CACHE), name, (files[file] for file in wanted if file in files), own)
    folder = None
    for file in wanted:
        if file not in files:
            raise UserError(f"{name}: {file} is missing on the hub, although the index of its weights lists it")
        folder = bring(file).parent
    for one in repository:
        if absent := lacking(one, folder):
            raise UserError(f"{one.where}: {name}: no {absent[0]} on the hub in a supported format")
    assert folder is not None
    return folder


def already_here(repository: list[Named], own: Path | None, error: Exception) -> Path:
    """The folder of a previously downloaded repository. Raises UserError if anything is missing."""
    for one in repository:
        folder = one.folder() if own is None else own if own.is_dir() else None
        if absent := lacking(one, folder):
            raise UserError(
                f"{one.where}: {one.name}: missing ({', '.join(absent)}), and the hub cannot be reached: {reason(error)}"
            )
    assert folder is not None
    print(f"{repository[0].name}: already here; not compared with the hub, which cannot be reached ({reason(error)})")
    return folder


def brought(name: str, revision: str | None, sibling: Any, own: Path | None) -> Path:
    """The local path of a file, downloaded if it is missing or differs from the hub's. Raises UserError."""
    file = sibling.rfilename
    for again in (False, True):
        try:
            path = Path(hf_hub_download(name, file, revision=revision, local_dir=own, force_download=again))
        except (HTTPError, OSError, ValueError) as error:
            raise UserError(f"{name}: {file} cannot be fetched: {reason(error)}; run the command again") from None
        wrong = difference(path, sibling)
        if wrong is None:
            return path
        print(f"{path}: {wrong}; downloading again", file=sys.stderr)
    raise UserError(f"{name}: {file} arrived damaged: {wrong}; try again later")


def difference(path: Path, sibling: Any) -> str | None:
    """How a file's size or digest differs from the hub's, or None."""
    size = path.stat().st_size
    if sibling.size is not None and size != sibling.size:
        return f"{size} bytes, but the hub says {sibling.size}"
    if sibling.lfs is not None:
        return None if digest(path, hashlib.sha256()) == sibling.lfs.sha256 else "its SHA-256 differs from the hub's"
    if sibling.blob_id is not None:
        git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        return None if digest(path, git) == sibling.blob_id else "its digest differs from the hub's"
    return None


def digest(path: Path, hasher: Any) -> str:
    """Adds a file to `hasher`; returns the digest in hex."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return str(hasher.hexdigest())


def check_space(folder: Path, name: str, siblings: Iterable[Any], own: Path | None) -> None:
    """Raises UserError if the disk has too little space for the files that are still missing."""
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"

    def is_here(sibling: Any) -> bool:
        if own is not None:
            return (own / sibling.rfilename).is_file()
        return (blobs / (sibling.lfs.sha256 if sibling.lfs else str(sibling.blob_id))).is_file()

    missing = sum(sibling.size or 0 for sibling in siblings if not is_here(sibling))
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    if (free := shutil.disk_usage(there).free) < missing:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB free, but {name} needs {missing / 1e9:.1f} GB more; free space, or choose "
            "another disk with --to or HF_HOME"
        )


def folder_below(to: Path, name: str, revision: str | None) -> Path:
    """The folder of a repository below `--to`."""
    return to / (name.replace("/", "--") + (f"@{revision}" if revision else ""))


def refused(name: str, revision: str | None, error: Exception) -> str:
    """Why the hub refuses a repository."""
    if isinstance(error, GatedRepoError):
        return f"{name} requires accepting its terms on its page; then log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision!r}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{name}: no such folder, and no such model on the hub, or it needs `hf auth login`"
    return f"{name} is not available: {reason(error)}"


def reason(error: Exception) -> str:
    """The first line of an error, without the library's further advice."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    return (str(error).splitlines() or [type(error).__name__])[0]
