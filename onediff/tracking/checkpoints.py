"""One logged model in MLflow for each checkpoint that a phase keeps: its step, losses, scores, data sets and settings.

The weights stay where they are, and the model's page says where. Registering them later adds them to the same model.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Metric

from onediff.tracking.journal import Record, records
from onediff.tracking.logged import CHECKPOINT, TRAINED, address, link, log_points, models_of
from onediff.tracking.names import valid_model_name, valid_name
from onediff.tracking.state import State

WEIGHTS = "onediff.weights"
"""Tag of a logged model: the folder of its checkpoint."""
REMOVED = "removed with the checkpoint; the registered version has a copy"
MEASURED = ("loss", "validation/", "evaluation/")
"""Metrics of a phase that say how good its weights are."""


class Checkpoints:
    """The logged models of one run's checkpoints."""

    def __init__(self, client: MlflowClient, experiment: str, state: State) -> None:
        self.client = client
        self.experiment = experiment
        self.state = state
        self.run_id = state.sent("run").run_id

    def keep(self, phase: str, steps: Collection[int]) -> None:
        """Gives `phase` one logged model for each of its checkpoints at `steps`, and deletes the others.

        A registered one is marked instead, because its version has a copy of the weights.
        """
        mine = ((address(model).rpartition(":"), model) for model in self._all())
        known = {int(step): model for (one, _, step), model in mine if one == phase}
        for step in known.keys() - set(steps):
            if TRAINED in known[step].tags:
                self.client.set_logged_model_tags(known[step].model_id, {WEIGHTS: REMOVED})
            else:
                self.client.delete_logged_model(known[step].model_id)
        models = {step: known.get(step) or self._begin(phase, step) for step in sorted(steps)}
        run_id = self.state.sent(f"phase-{phase}").run_id
        new = link(self.client, run_id, {model.model_id: step for step, model in models.items()})
        # The newest existing one may have new measurements.
        last = max(known.keys() & models.keys(), default=None)
        self._measure(phase, {step: one for step, one in models.items() if step == last or one.model_id in new})

    def scored(self, run_id: str, stream: str, phase: str, step: int, data: Mapping[str, Any] | None) -> None:
        """Adds the scores in the journal of the evaluation `stream`, which is the MLflow run `run_id`, to a model.

        `data` names the data set of the scores.
        """
        known = next((model for model in self._all() if address(model) == f"{phase}:{step}"), None)
        model = known or self._begin(phase, step)
        on = (data["name"], data["digest"]) if data else (None, None)
        told: list[Record] = []
        for _, record in records(self._journal(stream)):
            if "open" in record:  # an earlier one of the same name is replaced
                told.clear()
            elif "metrics" in record:
                told.append(record)
        points = [metric(record, key, model, on) for record in told for key in record["metrics"]]
        log_points(self.client, run_id, points)

    def _all(self) -> Iterator[LoggedModel]:
        return (model for model in models_of(self.client, self.experiment, self.run_id) if address(model))

    def _begin(self, phase: str, step: int) -> LoggedModel:
        """A new logged model of the run."""
        child = self.state.sent(f"phase-{phase}").run_id or self.run_id
        run = self.state.run
        weights = run / "checkpoints" / f"phase-{phase}" / f"step-{step:08d}"
        note = (
            f"The weights are in `{weights}`. `onediff export {run}@{phase}:{step} FOLDER --register NAME` adds them."
        )
        model = self.client.create_logged_model(
            self.experiment,
            valid_model_name(f"{phase}-{step}"),
            self.run_id,
            {CHECKPOINT: f"{phase}:{step}", WEIGHTS: str(weights), "mlflow.note.content": note},
            self.client.get_run(child).data.params,
        )
        self.client.finalize_logged_model(model.model_id, "READY")
        return model

    def _measure(self, phase: str, models: Mapping[int, LoggedModel]) -> None:
        """Copies the phase's points at the models' steps from its journal to the models."""
        sets = self._training_sets()
        journal = self._journal(f"phase-{phase}")
        found = {(record["step"], key): record for record in of_steps(journal, models) for key in record["metrics"]}
        points = []
        for (step, key), record in found.items():
            if key.startswith(MEASURED):
                names = [one.removeprefix("loss/") for at, one in found if at == step and one.startswith("loss/")]
                name = names[0] if key == "loss" and len(names) == 1 else key.removeprefix("loss/")
                points.append(metric(record, key, models[step], sets.get(name, (None, None))))
        log_points(self.client, self.state.sent(f"phase-{phase}").run_id, points)

    def _training_sets(self) -> dict[str, tuple[str, str]]:
        """Name and digest of the run's training data sets, by their names in the configuration."""
        told = (record["dataset"] for _, record in records(self._journal("run")) if "dataset" in record)
        return {one["set"]: (one["name"], one["digest"]) for one in told if "set" in one}

    def _journal(self, stream: str) -> Path:
        return self.state.run / "tracking" / f"{stream}.jsonl"


def of_steps(journal: Path, steps: Collection[int]) -> Iterator[Record]:
    """The records of metrics at some steps. A journal of 100,000 steps takes 0.13 s for two steps, 0.25 s for a hundred."""
    beginnings = tuple(f'{{"step":{step},"metrics"'.encode() for step in steps)
    if beginnings and journal.exists():
        with open(journal, "rb") as lines:
            yield from (json.loads(line) for line in lines if line.startswith(beginnings) and line.endswith(b"\n"))


def metric(record: Record, key: str, model: LoggedModel, data: tuple[str | None, str | None]) -> Metric:
    """A point of a journal as a point of a model; `data` is the name and digest of a data set."""
    value = record["metrics"][key]
    return Metric(valid_name(key), value, record["time"], record["step"], model.model_id, *data)
