"""The one error that users are meant to see, and how a process ends."""

EXIT_BAD_INPUT = 2
"""A UserError."""
EXIT_NOT_A_NUMBER = 3
"""Training met numbers that are not to be trusted; its last checkpoint is good."""
EXIT_STOPPED = 75
"""EX_TEMPFAIL: stopped on request, after a checkpoint. The same command with --resume goes on."""


class UserError(ValueError):
    """Something the user can fix: one line that names the file, row or key, what is wrong, and what to do.

    The command prints it without a traceback and ends with exit code 2.
    """
