"""A cache on disk for values that a model computed from texts and images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

Key = tuple[str, ...]


class Kept:
    """JSON lines `{"key", "values"}` in `~/.cache/onediff/metrics` (or in `XDG_CACHE_HOME`), one file per model.

    If the folder cannot be written, nothing is cached.
    """

    def __init__(self, name: str) -> None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.path = root / "onediff" / "metrics" / f"{name}.jsonl"
        self._values: dict[str, list[float]] = {}
        if self.path.is_file():
            for line in self.path.read_bytes().splitlines():
                try:
                    record = json.loads(line)
                    self._values[record["key"]] = [float(value) for value in record["values"]]
                except (ValueError, KeyError, TypeError):
                    continue  # the incomplete last line of a run that was killed

    def known(self, keys: Iterable[Key]) -> dict[Key, list[float]]:
        """The values of those `keys` that are cached."""
        return {key: self._values[_digest(key)] for key in keys if _digest(key) in self._values}

    def keep(self, found: Mapping[Key, list[float]]) -> None:
        """Appends values."""
        if not found:
            return
        lines = "".join(json.dumps({"key": _digest(key), "values": values}) + "\n" for key, values in found.items())
        self._values |= {_digest(key): values for key, values in found.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                # An incomplete line of a killed run must not corrupt the next one.
                cut = file.tell() and self.path.read_bytes()[-1:] != b"\n"
                file.write(b"\n" * bool(cut) + lines.encode())
        except OSError:
            return


def _digest(key: Key) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
