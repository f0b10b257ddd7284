"""Exports on the Hugging Face hub: push one as a repository, pull it by its name."""

from __future__ import annotations

import re
from pathlib import Path

from onediff.errors import UserError

REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def is_repository(name: str) -> bool:
    """Whether `name` reads as OWNER/NAME and is no folder here."""
    return bool(REPOSITORY.fullmatch(name)) and not Path(name).exists()


def push(folder: Path, repository: str) -> str:
    """Uploads an export as `repository`, private where it is new; returns its address. Raises UserError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from onediff.hub.fetch import reason

    api = HfApi()
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id, folder_path=folder, commit_message=f"onediff export of {folder.name}"
        )
    except (HfHubHTTPError, ValueError, OSError) as error:  # ValueError: a name or a card that the hub refuses
        raise UserError(f"--push {repository}: {reason(error)}; is HF_TOKEN set and may it write?") from None
    return str(address)


def pulled(repository: str) -> Path:
    """The local folder of a repository, downloaded unless it is cached. Raises UserError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    from onediff.hub.fetch import reason

    try:
        return Path(snapshot_download(repository))
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{repository}: no such folder, and the hub does not have it: {reason(error)}") from None
