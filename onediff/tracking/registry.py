"""An exported model's folder as a version in MLflow's model registry."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient, pyfunc, set_tracking_uri
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from PIL import Image

VARIABLE = "MLFLOW_TRACKING_URI"
PACKAGE = Path(__file__).parents[1]


class Flavour:
    """MLflow's pyfunc, without its habit of loading the weights once more to try the input example on them."""

    @staticmethod
    def save_model(validate_serving_input: bool, **options: Any) -> None:
        """Writes the model as MLflow keeps it; the option is for the caller, `Model.log`."""
        assert not validate_serving_input
        pyfunc.save_model(**options)


def register(client: MlflowClient, run_id: str, folder: Path, record: Mapping[str, Any]) -> None:
    """Logs `folder` with signature, input example and this package's code, and registers it as the journal's `record` says.

    A version that the same run registered before with the same weights is kept: only aliases and score are set.
    """
    name, trained = record["name"], record["trained"]
    known = client.search_model_versions(f"name='{name}'")
    version = next((v.version for v in known if v.run_id == run_id and v.tags.get("trained") == trained), None)
    if version is None:
        with default_store(client.tracking_uri):
            version = log_version(run_id, folder, name)
        client.set_model_version_tag(name, version, "trained", trained)
    for alias in record["aliases"]:
        client.set_registered_model_alias(name, alias, version)
    if score := record.get("score"):
        scored_on = f"score.{score['metric']}.{score['data']}"
        client.set_model_version_tag(name, version, scored_on, repr(float(score["value"])))
        rivals = [v for v in client.search_model_versions(f"name='{name}'") if scored_on in v.tags]
        best = max(rivals, key=lambda rival: (float(rival.tags[scored_on]), int(rival.version)))
        client.set_registered_model_alias(name, "best", best.version)


def log_version(run_id: str, folder: Path, name: str) -> str:
    """Uploads the model and makes a version of it; returns the version's number."""
    logged = Model.log(
        None,
        Flavour,
        name="model",
        run_id=run_id,
        registered_model_name=name,
        signature=ModelSignature(Schema([text("before"), text("after")]), Schema([text()])),
        input_example=pd.DataFrame([{"before": example((200, 60, 60)), "after": example((60, 60, 200))}]),
        python_model=str(Path(__file__).with_name("pyfunc.py")),
        artifacts={"model": str(folder)},
        code_paths=[str(PACKAGE)],
        pip_requirements=requirements(),
        validate_serving_input=False,
    )
    return str(logged.registered_model_version)


@contextmanager
def default_store(uri: str) -> Iterator[None]:
    """MLflow's model functions know one store a process, and put it into the environment: both are put back after."""
    before = os.environ.get(VARIABLE)
    set_tracking_uri(uri)
    try:
        yield
    finally:
        set_tracking_uri("")
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def text(name: str | None = None) -> ColSpec:
    """A column of text."""
    return ColSpec(DataType.string, name)


def requirements() -> list[str]:
    """What this package needs; not the package itself, whose code goes with the model."""
    return [line for line in metadata.requires("onediff") or [] if "extra ==" not in line]


def example(colour: tuple[int, int, int]) -> str:
    """A small picture of one colour, PNG in base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
