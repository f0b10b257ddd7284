"""The outcome of a check."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any


class NotHere(Exception):
    """The machine lacks what the check needs; `figures` hold the possible measurements."""

    def __init__(self, why: str, **figures: Any) -> None:
        super().__init__(why)
        self.figures = figures


class Wrong(Exception):
    """The machine does not do what it should; `figures` have the details."""

    def __init__(self, why: str, **figures: Any) -> None:
        super().__init__(why)
        self.figures = figures


def outcome(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`passed`, `failed` or `not here`, with the reason and the figures."""
    try:
        return {"result": "passed", "why": "", "figures": check()}
    except NotHere as reason:
        return {"result": "not here", "why": str(reason), "figures": reason.figures}
    except Wrong as reason:
        return {"result": "failed", "why": str(reason), "figures": reason.figures}
    except Exception as error:
        traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(str(error).split())[:300]
        return {
            "result": "failed",
            "why": f"{type(error).__name__}: {words} ({last.filename.rpartition('/')[2]}:{last.lineno})",
            "figures": {"trace": traceback.format_exc()[-3000:]},
        }
