"""Addresses of weights: `RUN`, `RUN@PHASE`, `RUN@STEP`, `RUN@best`, `RUN@PHASE:STEP`, `RUN@PHASE:best`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from onediff.config.training import InitConfig
from onediff.errors import UserError
from onediff.runs.folder import RunFolder, require_model


class Address(NamedTuple):
    """A folder, and the text after its `@`."""

    folder: Path
    at: str | None

    def __str__(self) -> str:
        return str(self.folder) if self.at is None else f"{self.folder}@{self.at}"

    @classmethod
    def of(cls, text: str | Path) -> Address:
        """Parses an address. An existing folder may have an `@` in its name."""
        path = Path(text)
        if path.exists() or "@" not in path.name:
            return cls(path, None)
        folder, _, at = path.name.rpartition("@")
        return cls(path.with_name(folder) if folder else path, at)

    @property
    def is_run(self) -> bool:
        """Whether the folder is a run, not a saved model."""
        return RunFolder(self.folder).config.is_file()

    def require(self) -> None:
        """Raises UserError unless the folder is a saved model or a run with a checkpoint. Needs no torch."""
        require_model(self.folder)
        if self.at is not None and not self.is_run:
            raise UserError(f"{self}: a saved model has only one set of weights; remove @{self.at}")


def require_sources(init: InitConfig | None, run: Path) -> None:
    """Raises UserError if a source in `init` is missing. A run with a checkpoint no longer needs its sources."""
    if init is not None and not any(run.glob("checkpoints/*/step-*")):
        for address in dict.fromkeys(init.addresses.values()):
            Address.of(address).require()
