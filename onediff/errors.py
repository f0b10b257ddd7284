"""The error class for users, and exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

EXIT_BAD_INPUT = 2
"""A UserError."""
EXIT_NOT_A_NUMBER = 3
"""Training stopped on invalid numbers; its last checkpoint is good."""
EXIT_STOPPED = 75
"""EX_TEMPFAIL: stopped on request, after a checkpoint. The same command with --resume continues."""


class UserError(ValueError):
    """An error that the user can fix: one line with the file, row or key, what is wrong, and what to do.

    Commands print it without a traceback and exit with code 2.
    """


@contextmanager
def under(section: str) -> Iterator[None]:
    """Completes the key in a UserError raised inside: `lora.targets: …` becomes `phases.two.lora.targets: …`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{section}.{error}") from error
