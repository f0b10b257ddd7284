"""What every test module shares: the folder of real data, a quiet environment for child processes, markers by what a test
needs, and the order in which files are run."""

import os
import signal
from pathlib import Path
from types import ModuleType

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Several ranks share the cores in most tests; one thread each is both faster and repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real public data named by ONEDIFF_REAL_DATA; the test is skipped if there is none."""
    folder = Path(os.environ.get("ONEDIFF_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ONEDIFF_REAL_DATA to a folder that holds it")
    return folder


NEEDS = {
    "slurm": {"slurm_cluster"},
    "mlflow": {"mlflow_server", "mlflow"},
    "java": {"onediff.evaluation.java", "onediff.evaluation.meteor"},
    "browser": {"browser"},
    "ranks": {"processes", "small_run", "forked"},
}
"""Marker → the modules by which a test module shows that it needs such a thing."""

FIRST = [
    "launcher/test_launch_slurm_faults.py",
    "parallel/test_tensor_parallel.py",
    "launcher/test_launch_slurm.py",
    "training/test_resume.py",
    "tracking/test_tracking_server.py",
    "launcher/test_launch_slurm_commands.py",
    "training/test_validation.py",
    "evaluation/test_generate.py",
    "project/test_gpu_benchmark.py",
    "training/test_checkpoint.py",
    "tracking/test_tracking_training.py",
    "end_to_end/test_own_pairs.py",
    "end_to_end/test_tiles_run.py",
    "end_to_end/test_demo.py",
    "evaluation/test_metrics.py",
    "evaluation/test_score.py",
    "plan/test_plan_flops.py",
    "model/test_paper_model.py",
]
"""The longest files, so that neither worker is left with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by what they need, and puts the files that take longest first."""
    root = Path(__file__).parent
    place = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.relative_to(root).as_posix(), len(place)))
    for item in items:
        used = set().union(*map(_modules, vars(item.module).values()), _of_fixtures(item))
        for marker, modules in NEEDS.items():
            if used & modules:
                item.add_marker(marker)


def _modules(value: object) -> set[str | None]:
    """The module that a name of a test module is from, or is."""
    return {value.__name__} if isinstance(value, ModuleType) else {getattr(value, "__module__", None)}


def _of_fixtures(item: pytest.Item) -> set[str]:
    """The modules that the fixtures of a folder's conftest.py stand for."""
    named = {"cluster": "slurm_cluster", "launched": "slurm_cluster"}
    if item.path.parent.name == "tracking":
        named["server"] = "mlflow_server"
    return {named[name] for name in getattr(item, "fixturenames", ()) if name in named}
