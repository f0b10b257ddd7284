"""The list of slow tests in tests/conftest.py names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_slow_test_exists():
    text = (TESTS / "conftest.py").read_text()
    slow = ast.literal_eval(re.search(r"^SLOW = (\{.*?^\})", text, re.DOTALL | re.MULTILINE)[1].replace("set()", "()"))
    for file, names in slow.items():
        found = set(re.findall(r"^def (test_\w+)", (TESTS / file).read_text(), re.MULTILINE))
        assert found and set(names) <= found, f"{file}: {set(names) - found}"
