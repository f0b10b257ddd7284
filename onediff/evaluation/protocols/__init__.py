"""The rules of each benchmark, one module each. Numbers of two protocols are never compared."""

from __future__ import annotations

import importlib

from onediff.config.section import nearest
from onediff.errors import UserError
from onediff.evaluation.protocols.protocol import Protocol, Published

MODULES = {
    "plain": "plain",
    "spot-the-diff": "spot_the_diff",
    "spot-the-diff-joined": "spot_the_diff_joined",
    "clevr-change": "clevr_change",
    "image-editing-request": "image_editing_request",
    "birds-to-words": "birds_to_words",
    "levir-cc": "levir_cc",
    "demo": "demo",
}
NAMES = tuple(MODULES)


def protocol(name: str) -> Protocol:
    """The protocol called `name`; raises UserError with the nearest name."""
    if name not in MODULES:
        raise UserError(f"no protocol {name!r}{nearest(name, MODULES)}")
    found: Protocol = importlib.import_module(f"{__name__}.{MODULES[name]}").PROTOCOL
    assert found.name == name
    return found


__all__ = ["MODULES", "NAMES", "Protocol", "Published", "protocol"]
