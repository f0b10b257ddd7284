"""Names and texts that every MLflow store accepts."""

from __future__ import annotations

import re

PARAM_TEXT, TAG_TEXT = 6000, 8000  # the longest values that MLflow accepts
LONGEST_NAME = 250
NOT_IN_A_NAME = re.compile(r"[^\w.\-/: ]")


def valid_name(key: str) -> str:
    """`key` as MLflow accepts it for a metric, a parameter or a tag: a relative path of allowed characters."""
    parts = NOT_IN_A_NAME.sub("_", key)[: LONGEST_NAME - 1].split("/")
    name = "/".join(part for part in parts if part not in ("", ".", ".."))
    return f"_{name}" if not name or name.startswith("..") else name


def valid_model_name(name: str) -> str:
    """`name` as MLflow accepts it for a logged model: no dot, colon, slash or quote."""
    return re.sub(r"[^\w-]", "_", name) or "model"


def valid_text(text: str, longest: int) -> str:
    """`text` without the one character that PostgreSQL rejects, cut to MLflow's limit."""
    return text.replace("\0", "�")[:longest]


def beneath(parent: str, name: str) -> str:
    """The name of a child run: `parent / name`, because a comparison of runs shows nothing but their names."""
    return f"{parent[: LONGEST_NAME - len(name) - 3]} / {name}"
