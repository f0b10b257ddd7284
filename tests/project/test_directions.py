"""Which package may import which: `docs/architecture.md` draws it, this holds it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

HOUSE = Path(__file__).parents[2]
PACKAGES = ("onediff", "launcher", "data_prep")

FLOORS = (
    {"cli"},
    {"rehearsal"},
    {"training", "evaluation", "serving", "demo"},
    {"model", "data", "parallel", "zero", "tracking", "plan", "hub"},
    {"runs"},
    {"config"},
    {"amounts", "atomic", "columns", "errors", "llm", "outputs", "progress", "ranks"},
)
"""Of `onediff`, from the top; a package imports from its own floor and those below it."""

MAY_IMPORT = {
    "launcher": {"amounts", "atomic", "columns", "config", "errors", "outputs", "ranks", "runs"},
    "data_prep": {"amounts", "atomic", "columns", "config", "data", "errors", "llm", "outputs", "progress"},
}
"""What the packages that stand apart may use of `onediff`."""

MAY_ALSO_IMPORT = {
    "data_prep/cli/check": {"cli"},  # one convention for results as JSON
    "data_prep/cli/convert": {"cli"},
    "launcher/alerts": {"tracking"},  # masks secrets as the journal does
    "launcher/fit": {"plan"},  # a phase that does not fit into its GPUs is not queued
    "launcher/freeze": {"tracking"},  # where the frozen code came from, in the words of the tracking
    "launcher/profile": {"plan"},  # the names of GPUs
    "launcher/search": {"tracking"},  # the metrics of the runs that it compares
    "launcher/ready": {"hub", "plan"},  # what a run reads and is not there
    "launcher/submission": {"tracking"},  # an address that MLflow does not understand is refused before a run starts
}
"""What single files may use beyond that, and why."""

WITHOUT_TORCH = (
    "onediff.cli",
    "onediff.config.compose",
    "onediff.plan.phase",
    "launcher.job",
    "launcher.commands.submit",
)
WITHOUT_TORCH += ("data_prep.cli.convert", "data_prep.cli.build", "data_prep.cli.check", "data_prep.cli.render")


class Import(NamedTuple):
    """One name that a module imports, at its head or inside a function."""

    importer: str
    """`onediff/data/rows.py:14`"""
    inside: tuple[str, ...]
    """The importing module: `("onediff", "data", "rows")`."""
    name: str
    """`onediff.errors.UserError`"""

    def fault(self) -> str | None:
        """What is wrong with it, or None for an import that points down."""
        package, here = self.inside[0], self.inside[1]
        target, *parts = self.name.split(".")
        if target not in PACKAGES or not parts or here in ("__init__", "__main__"):
            return None
        if package != "onediff":
            of_onediff = MAY_IMPORT[package] | MAY_ALSO_IMPORT.get("/".join(self.inside), set())
            allowed = target == package or (target == "onediff" and parts[0] in of_onediff)
            return None if allowed else f"{package} may use of onediff only {', '.join(sorted(of_onediff))}"
        if target != "onediff":
            return None if here == "cli" else f"only onediff.cli may use {target}"
        above, own = floor(parts[0]), floor(here)
        return None if above is None or above >= own else f"onediff.{here} lies below onediff.{parts[0]}"


def floor(package: str) -> int | None:
    return next((number for number, names in enumerate(FLOORS) if package in names), None)


def imports(house: Path) -> Iterator[Import]:
    """Every import of the packages in `house`."""
    for file in sorted(file for package in PACKAGES for file in (house / package).rglob("*.py")):
        place = file.relative_to(house)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [name.name for name in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                # Files that go with exports import each other wherever they lie.
                if node.level and place.match("onediff/hub/*_onediff.py"):
                    continue
                assert node.module and not node.level, f"{place}:{node.lineno}: write the import in full"
                names = [f"{node.module}.{name}" for name in names]
            for name in names:
                yield Import(f"{place}:{node.lineno}", place.with_suffix("").parts, name)


def faults(house: Path) -> list[str]:
    return [f"{one.importer}: imports {one.name}, but {why}" for one in imports(house) if (why := one.fault())]


def test_every_import_points_down():
    assert not (found := faults(HOUSE)), "\n".join(found)


def test_every_package_has_its_floor():
    packages = {
        path.stem for path in (HOUSE / "onediff").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert packages - {"__init__", "__main__"} == set().union(*FLOORS)


@pytest.mark.parametrize(
    ("place", "line", "why"),
    [
        ("onediff/config/data.py", "import onediff.data.remote", "onediff.config lies below onediff.data"),
        ("onediff/model/vision.py", "from onediff.training import run", "onediff.model lies below onediff.training"),
        ("onediff/data/rows.py", "from launcher import job", "only onediff.cli may use launcher"),
        ("launcher/job.py", "from onediff.model import onediff", "launcher may use of onediff only"),
        ("data_prep/check.py", "from onediff.cli import main", "data_prep may use of onediff only"),
    ],
)
def test_an_import_that_points_up_is_named_by_file_and_line(tmp_path, place, line, why):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(f"def late():\n    {line}\n")
    (found,) = faults(tmp_path)
    assert found.startswith(f"{place}:2: imports ") and why in found


def test_only_the_zero_package_knows_deepspeed():
    """`onediff.model.lean` imports it for the others, without what it drags in; nobody else uses it or its attributes."""
    word = re.compile(
        r"^\s*(import|from) deepspeed|\blean import .*\bdeepspeed|[.\"]ds_(id|tensor|shape|numel)\b", re.M
    )
    files = [file for file in (HOUSE / "onediff").rglob("*.py") if word.search(file.read_text(encoding="utf-8"))]
    homes = {str(file.relative_to(HOUSE / "onediff").parts[0]) for file in files if file.name != "lean.py"}
    assert homes == {"zero"}


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_starts_without_torch_does(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
