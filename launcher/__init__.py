"""Runs on a Slurm cluster or on this machine. `submit` and `Run` are for Python; nothing else is imported with this."""

from typing import Any


def __getattr__(name: str) -> Any:
    # The supervisor imports this package where pydantic may be missing.
    if name in ("Run", "submit"):
        from launcher import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
