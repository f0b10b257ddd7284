"""Addresses of data: local paths, URLs, and commands that print a file."""

from __future__ import annotations

from urllib.parse import quote

from onediff.errors import UserError

PLACE = "{}"
"""Placeholder for the file name in a `pipe:` command."""


def is_url(path: str) -> bool:
    """Whether `path` is a URL or a `pipe:` command, not a local path."""
    return path.startswith("pipe:") or "://" in path


def below(base: str, folder: str) -> str:
    """The folder `folder` in `base`. Raises UserError for a `pipe:` without a placeholder for names."""
    if base.startswith("pipe:"):
        if PLACE not in base:
            raise UserError(
                f"{base}: put {PLACE} where the name of a file goes, as in pipe:ssh host cat /sets/pairs/{PLACE}"
            )
        return base.replace(PLACE, f"{folder}/{PLACE}")
    path, mark, query = base.partition("?")
    return f"{path.rstrip('/')}/{quote(folder)}{mark}{query}"
