"""The lists in tests/conftest.py, by which tests are marked, name tests and modules that exist."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def listed(name: str) -> dict[str, set[str]]:
    text = (TESTS / "conftest.py").read_text()
    found = re.search(rf"^{name} = (\{{.*?^\}})", text, re.DOTALL | re.MULTILINE)
    return ast.literal_eval(found[1].replace("set()", "()"))


def test_every_slow_test_exists():
    for file, names in listed("SLOW").items():
        found = set(re.findall(r"^def (test_\w+)", (TESTS / file).read_text(), re.MULTILINE))
        assert found and set(names) <= found, f"{file}: {set(names) - found}"


def test_every_module_that_shows_a_need_exists():
    """A module that was renamed would leave the tests that import it unmarked."""
    modules = set().union(*listed("NEEDS").values())
    assert {"forked", "mlflow"} < modules
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
