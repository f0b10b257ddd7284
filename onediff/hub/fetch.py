"""Bringing what a configuration names from the hub, checked against the sizes and digests that the hub reports."""

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
    HTTPError,  # of the client that the library uses: no connection, or a broken one
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from onediff.errors import UserError
from onediff.hub.files import lacking, needed
from onediff.hub.named import Named

CHUNK = 1 << 24


def fetch(repository: list[Named], to: Path | None = None) -> Path:
    """The folder with the files of one repository, all of which `repository` names; brought where they are not here.

    They go into the hub's cache, or as plain files into a folder below `to`. An interrupted download goes on where it
    stopped. Where the hub cannot be asked, what is here already must be all. Raises UserError for what cannot be had.
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
            raise UserError(f"{name}: {file} is missing on the hub, although the index of its weights names it")
        folder = bring(file).parent
    for one in repository:
        if absent := lacking(one, folder):
            raise UserError(f"{one.where}: {name}: no {absent[0]} on the hub in a form that can be read")
    assert folder is not None
    return folder


def already_here(repository: list[Named], own: Path | None, error: Exception) -> Path:
    """The folder of a repository that was fetched before. Raises UserError when something is missing."""
    for one in repository:
        folder = one.folder() if own is None else own if own.is_dir() else None
        if absent := lacking(one, folder):
            raise UserError(
                f"{one.where}: {one.name}: not here ({', '.join(absent)}), and the hub cannot be asked: {reason(error)}"
            )
    assert folder is not None
    print(f"{repository[0].name}: here already; not compared with the hub, which cannot be asked ({reason(error)})")
    return folder


def brought(name: str, revision: str | None, sibling: Any, own: Path | None) -> Path:
    """The local path of one file, downloaded where it is missing or not what the hub says. Raises UserError."""
    file = sibling.rfilename
    for again in (False, True):
        try:
            path = Path(hf_hub_download(name, file, revision=revision, local_dir=own, force_download=again))
        except (HTTPError, OSError, ValueError) as error:
            raise UserError(f"{name}: {file} cannot be fetched: {reason(error)}; the same command goes on") from None
        wrong = difference(path, sibling)
        if wrong is None:
            return path
        print(f"{path}: {wrong}; fetched again", file=sys.stderr)
    raise UserError(f"{name}: {file} comes damaged: {wrong}; try again later")


def difference(path: Path, sibling: Any) -> str | None:
    """How a file differs from what the hub says of it, in size or digest; None if it does not."""
    size = path.stat().st_size
    if sibling.size is not None and size != sibling.size:
        return f"{size} bytes, but the hub says {sibling.size}"
    if sibling.lfs is not None:
        return None if digest(path, hashlib.sha256()) == sibling.lfs.sha256 else "its SHA-256 is not the hub's"
    if sibling.blob_id is not None:
        git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        return None if digest(path, git) == sibling.blob_id else "its digest is not the hub's"
    return None


def digest(path: Path, hasher: Any) -> str:
    """The digest of a file in hex, begun in `hasher`."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return str(hasher.hexdigest())


def check_space(folder: Path, name: str, siblings: Iterable[Any], own: Path | None) -> None:
    """Raises UserError when a disk cannot take what is still to come."""
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"

    def is_here(sibling: Any) -> bool:
        if own is not None:
            return (own / sibling.rfilename).is_file()
        return (blobs / (sibling.lfs.sha256 if sibling.lfs else str(sibling.blob_id))).is_file()

    missing = sum(sibling.size or 0 for sibling in siblings if not is_here(sibling))
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    if (free := shutil.disk_usage(there).free) < missing:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB free, {missing / 1e9:.1f} GB to come of {name}; make room, or choose another "
            "disk with --to or HF_HOME"
        )


def folder_below(to: Path, name: str, revision: str | None) -> Path:
    """Where `--to` puts a repository."""
    return to / (name.replace("/", "--") + (f"@{revision}" if revision else ""))


def refused(name: str, revision: str | None, error: Exception) -> str:
    """Why the hub does not give a repository."""
    if isinstance(error, GatedRepoError):
        return f"{name} is given only to those who accepted its terms on its page; then log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision!r}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{name}: no such folder here and no such model on the hub, or one that needs `hf auth login`"
    return f"{name} cannot be had: {reason(error)}"


def reason(error: Exception) -> str:
    """The first line of an error, without the library's further advice."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    return (str(error).splitlines() or [type(error).__name__])[0]
