"""An exported model's folder as a version in MLflow's model registry."""

from __future__ import annotations

import base64
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient, pyfunc
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS
from PIL import Image

from onediff.tracking.logged import CHECKPOINT, TRAINED, address, field, link, models_of
from onediff.tracking.names import valid_model_name
from onediff.tracking.state import Parcel, State
from onediff.tracking.upload import below, upload

PACKAGE = Path(__file__).parents[1]
SOURCE = "models:/"


class Registry:
    """Creates versions of one run's exported models. An interrupted registration is continued, not repeated."""

    def __init__(self, client: MlflowClient, experiment: str, state: State) -> None:
        self.client = client
        self.experiment = experiment
        self.state = state

    def register(self, run_id: str, folder: Path, record: Mapping[str, Any], parcel: Parcel) -> None:
        """Logs `folder` in the run's experiment and registers it as the journal's `record` says.

        If the same run already registered these weights, its version is kept: only aliases and score are set.
        Raises what MLflow raises; `parcel` then records the progress.
        """
        name, trained = record["name"], record["trained"]
        known = self.client.search_model_versions(f"name='{name}'")
        made = next((one for one in known if one.run_id == run_id and one.tags.get(TRAINED) == trained), None)
        if made is None:
            model = self._logged(run_id, trained, parcel)
            self._upload(model, run_id, folder, trained, parcel)
            version = self._version(model, run_id, name, trained)
        else:
            model, version = self.client.get_logged_model((made.source or "").removeprefix(SOURCE)), str(made.version)
        self._link(model, name, version)
        for alias in record["aliases"]:
            self.client.set_registered_model_alias(name, alias, version)
        if score := record.get("score"):
            self._score(name, version, score)

    def _logged(self, run_id: str, trained: str, parcel: Parcel) -> LoggedModel:
        """The logged model that was started for these weights, else that of their checkpoint, else a new one."""
        begun = list(models_of(self.client, self.experiment, run_id))
        phase, step = field(trained, "phase"), field(trained, "step")
        model = next((model for model in begun if model.tags.get(TRAINED) == trained), None)
        if model is None:
            free = (model for model in begun if TRAINED not in model.tags)
            model = next((model for model in free if address(model) == f"{phase}:{step}"), None)
            if model is not None:
                self.client.set_logged_model_tags(model.model_id, {TRAINED: trained})
        if model is None:
            settings = self.client.get_run(run_id).data.params
            name = valid_model_name("-".join(filter(None, (phase, step))))
            tags = {TRAINED: trained, CHECKPOINT: f"{phase}:{step}"} if step else {TRAINED: trained}
            model = self.client.create_logged_model(self.experiment, name, run_id, tags, settings)
        if parcel.model_id != model.model_id:
            with self.state.lock:
                parcel.model_id, parcel.there = model.model_id, {}
            self.state.save()
        return model

    def _upload(self, model: LoggedModel, run_id: str, folder: Path, trained: str, parcel: Parcel) -> None:
        """Sends signature, input example, this package's code, and the folder, without copying it first."""
        with tempfile.TemporaryDirectory() as aside:
            staged, stand_in = Path(aside) / "staged", Path(aside) / folder.name
            stand_in.mkdir()  # MLflow would copy the weights
            pyfunc.save_model(
                staged,
                mlflow_model=Model(
                    run_id=run_id,
                    artifact_path=model.artifact_location,
                    model_uuid=model.model_id,
                    model_id=model.model_id,
                ),
                signature=ModelSignature(
                    Schema([text("before"), text("after")]),
                    Schema([text()]),
                    ParamSchema([ParamSpec("judged", DataType.boolean, default=False)]),
                ),
                input_example=pd.DataFrame([{"before": example((200, 60, 60)), "after": example((60, 60, 200))}]),
                python_model=str(Path(__file__).with_name("pyfunc.py")),
                artifacts={"model": str(stand_in)},
                code_paths=[str(PACKAGE)],
                pip_requirements=requirements(),
            )
            files = {name: path for name, path in below(staged, "").items() if "__pycache__" not in path.parts}
            files |= below(folder, f"artifacts/{folder.name}")
            put = partial(self.client.log_model_artifact, model.model_id)
            upload(files, parcel.there, put, partial(self.state.noted, parcel))
        self.client.finalize_logged_model(model.model_id, "READY")
        link(self.client, run_id, {model.model_id: int(field(trained, "step") or 0)})

    def _version(self, model: LoggedModel, run_id: str, name: str, trained: str) -> str:
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{SOURCE}{model.model_id}"
        with process_store(self.client.tracking_uri):
            made = self.client.create_model_version(name, source, run_id, {TRAINED: trained}, model_id=model.model_id)
        return str(made.version)

    def _link(self, model: LoggedModel, name: str, version: str) -> None:
        """Lists the version on the model's own page, as `mlflow.register_model` does."""
        versions, this = json.loads(model.tags.get(MLFLOW_MODEL_VERSIONS, "[]")), {"name": name, "version": version}
        if this not in versions:
            self.client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([*versions, this])})

    def _score(self, name: str, version: str, score: Mapping[str, Any]) -> None:
        """Tags a version with its score; the alias `best` goes to the best of those scored on the same data."""
        scored_on = f"score.{score['metric']}.{score['data']}"
        self.client.set_model_version_tag(name, version, scored_on, repr(float(score["value"])))
        rivals = [v for v in self.client.search_model_versions(f"name='{name}'") if scored_on in v.tags]
        best = max(rivals, key=lambda rival: (float(rival.tags[scored_on]), int(rival.version)))
        self.client.set_registered_model_alias(name, "best", best.version)


@contextmanager
def process_store(uri: str) -> Iterator[None]:
    """Makes `uri` the store of this process, where a file store looks models up, whatever the client's store is."""
    shell = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # MLflow's own way back to the environment's
        if shell is not None:
            os.environ["MLFLOW_TRACKING_URI"] = shell


def text(name: str | None = None) -> ColSpec:
    """A column of text."""
    return ColSpec(DataType.string, name)


def requirements() -> list[str]:
    """The requirements of this package, but not the package itself, whose code is stored with the model."""
    return [line for line in metadata.requires("onediff") or [] if "extra ==" not in line]


def example(colour: tuple[int, int, int]) -> str:
    """A small image of one colour, as PNG in base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
