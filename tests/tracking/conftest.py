"""One real MLflow server for all tests of tracking, and a proxy before it that can misbehave."""

from collections.abc import Iterator

import pytest
from mlflow_server import FaultyProxy, MlflowServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    started = MlflowServer(tmp_path_factory.mktemp("mlflow")).start()
    yield started
    started.stop()


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[FaultyProxy]:
    started = FaultyProxy(server.port)
    yield started
    started.stop()
