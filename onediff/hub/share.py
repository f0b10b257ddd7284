"""Pushes exports to the Hugging Face hub, and pulls them by name."""

from __future__ import annotations

import re
from pathlib import Path

from onediff.errors import UserError

REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def is_repository(name: str) -> bool:
    """Whether `name` has the form OWNER/NAME and is not a local folder."""
    return bool(REPOSITORY.fullmatch(name)) and not Path(name).exists()


def push(folder: Path, repository: str) -> str:
    """Uploads an export to `repository`, created as private if needed; returns its address. Raises UserError."""
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
        raise UserError(
            f"--push {repository}: {reason(error)}; check that HF_TOKEN is set and allows writing"
        ) from None
    return str(address)


def pulled(repository: str) -> Path:
    """The local folder of a repository, downloaded unless it is cached. Raises UserError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    from onediff.hub.fetch import reason

    try:
        return Path(snapshot_download(repository))
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{repository}: no such folder, and not available on the hub: {reason(error)}") from None
