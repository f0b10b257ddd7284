"""The one error that users are meant to see."""


class UserError(ValueError):
    """Something the user can fix: one line that names the file, row or key, what is wrong, and what to do.

    The command prints it without a traceback and ends with exit code 2.
    """
