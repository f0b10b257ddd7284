"""Write the supervisor's lines to the job's log."""

from __future__ import annotations

import time


def say(text: str) -> None:
    """Write a line to the job's log."""
    try:
        print(f"onediff launch: {time.strftime('%H:%M:%S')} {text}", flush=True)
    except OSError:
        return  # the log's storage may be away; the supervisor carries on without it
