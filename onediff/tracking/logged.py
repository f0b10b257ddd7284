"""What MLflow keeps of a run: its metrics, and its logged models and their place on its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric

CHECKPOINT = "onediff.checkpoint"
"""Tag of a logged model: PHASE:STEP of its weights."""
TRAINED = "trained"
"""Tag of a logged model that is, or is being, registered, and of its version: run, phase and step of its weights."""
METRICS = 1000
"""MLflow's limit for one request."""


def log_points(client: MlflowClient, run_id: str, points: Sequence[Metric]) -> None:
    """Logs any number of metrics."""
    for at in range(0, len(points), METRICS):
        client.log_batch(run_id, metrics=points[at : at + METRICS])


def address(model: LoggedModel) -> str:
    """PHASE:STEP of a logged model's weights; empty if it has no such tag."""
    phase, step = (field(model.tags.get(TRAINED, ""), name) for name in ("phase", "step"))
    return model.tags.get(CHECKPOINT) or (f"{phase}:{step}" if step else "")


def field(trained: str, name: str) -> str:
    """A field of the result of `trained_as`, or ""."""
    fields = dict(part.split(" ", 1) for part in trained.split(", ") if " " in part)
    return fields.get(name, "")


def models_of(client: MlflowClient, experiment: str, run_id: str) -> Iterator[LoggedModel]:
    """The logged models that a run is the source of, except deleted ones."""
    token = None
    while True:
        page = client.search_logged_models([experiment], f"source_run_id = '{run_id}'", page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def link(client: MlflowClient, run_id: str, models: Mapping[str, int]) -> set[str]:
    """Lists logged models (id and step) on the page of a run unless they are there; returns the new ones."""
    outputs = client.get_run(run_id).outputs
    there = {output.model_id for output in outputs.model_outputs} if outputs else set()
    if new := models.keys() - there:
        client.log_outputs(run_id, [LoggedModelOutput(model, models[model]) for model in sorted(new)])
    return new
