"""Public models by their names, from a hub on loopback: what is fetched, and read as transformers reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hub_server import serving
from places import SUPPORT
from public_models import FAMILIES, publish

# What of these files the paper's run needs is fetched and trained in test_paper_run.py.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def read_by_name(tmp_path_factory) -> dict[str, str | None]:
    """What is wrong with each family, found by one process that knows the hub only."""
    folder = tmp_path_factory.mktemp("hub")
    for repository in FAMILIES:
        publish(repository, folder / "hub")
    with serving(folder / "hub") as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        worker = SUPPORT / "hub_worker.py"
        done = subprocess.run(
            [sys.executable, str(worker)], env={**os.environ, **variables}, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [repository.name for repository in FAMILIES])
def test_it_is_fetched_and_read_by_its_name(read_by_name, name):
    assert read_by_name[name] is None
