"""The rules of each benchmark, one module each. Scores under different protocols are never compared."""

from __future__ import annotations

import importlib

from onediff.config.evaluation import PROTOCOLS
from onediff.config.section import nearest
from onediff.errors import UserError
from onediff.evaluation.protocols.protocol import Protocol, Published


def protocol(name: str) -> Protocol:
    """The protocol called `name`. Raises UserError suggesting the nearest name."""
    if name not in PROTOCOLS:
        raise UserError(f"no protocol {name!r}{nearest(name, PROTOCOLS)}")
    found: Protocol = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").PROTOCOL
    assert found.name == name
    return found


__all__ = ["Protocol", "Published", "protocol"]
