"""Launch runs on a Slurm cluster or on this machine. The Python API is `submit` and `Run`, which are imported lazily."""

from typing import Any


def __getattr__(name: str) -> Any:
    # The supervisor imports this package in environments that may lack pydantic.
    if name in ("Run", "submit"):
        from launcher import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
