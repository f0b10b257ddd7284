"""What every test module shares: the folder of real data, and a quiet environment for child processes."""

import os
import signal
from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Several ranks share the cores in most tests; one thread each is both faster and repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real public data named by ONEDIFF_REAL_DATA; the test is skipped where there is none."""
    folder = Path(os.environ.get("ONEDIFF_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ONEDIFF_REAL_DATA to a folder that holds it")
    return folder
