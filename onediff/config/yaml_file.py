"""Reads YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from onediff.errors import UserError


def read_mapping(file: Path) -> dict[str, Any]:
    """The mapping in `file`. Raises UserError if it cannot be read or is not a mapping."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a mapping of keys to values")
    return values
