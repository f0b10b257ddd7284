"""Lines of the supervisor in the job's log."""

from __future__ import annotations

import time


def say(text: str) -> None:
    """A line in the job's log."""
    try:
        print(f"onediff launch: {time.strftime('%H:%M:%S')} {text}", flush=True)
    except OSError:
        return  # the log lies on the storage that may be away; what is judged here goes on without it
