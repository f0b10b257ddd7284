"""The complete configuration of a run: a tree of sections."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import Field, ValidationError, field_validator, model_validator

from onediff.config.data import DataConfig
from onediff.config.evaluation import EvaluationConfig
from onediff.config.model import ModelConfig, NewTokenizer
from onediff.config.parallel import ParallelConfig
from onediff.config.section import PLAIN_NAME, Section, nearest
from onediff.config.tracking import TrackingConfig
from onediff.config.training import Checkpointing, InitConfig, OptimizerConfig, PhaseConfig, TrainingConfig
from onediff.errors import UserError


def chosen_phases(known: Collection[str], wanted: str | None) -> list[str]:
    """The phases named by `--phases A,B`, in the order of `known`; by default all. Raises UserError."""
    if wanted is None:
        return list(known)
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UserError(f"--phases: no phase {name!r}{nearest(name, known)}")
    if not names:
        raise UserError("--phases: no phase given")
    return [name for name in known if name in names]


class RunConfig(Section):
    """Everything that determines what a run computes. The complete configuration is stored with every run and suffices to
    repeat it."""

    name: str
    """Name of the run and of its folder below `runs/`: letters, digits, `.`, `_`, `-`."""
    model: ModelConfig
    """The model to train. The folder of an export stands for a model of the same architecture, without its weights; see
    `init`."""
    init: InitConfig | None = None
    """Parts that start from another run or an export, instead of from `model`. Applies to the first phase trained in this
    run, which `--phases` can choose."""
    data: DataConfig
    """Data sets and data loading."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its schedule."""
    training: TrainingConfig = TrainingConfig()
    """Settings for all phases."""
    phases: dict[str, PhaseConfig] = Field(min_length=1)
    """Phases in the order in which they run; each starts from the weights of the previous one."""
    parallel: ParallelConfig = ParallelConfig()
    """Parallelism, ZeRO and offloading."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow and the journal."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Captioning and scoring."""

    def checkpointing_of(self, phase: PhaseConfig) -> Checkpointing:
        """A phase's activation checkpointing: its own, or that of all phases."""
        return phase.activation_checkpointing or self.training.activation_checkpointing

    def of_phase(self, name: str) -> RunConfig:
        """The same configuration with the `parallel` section of phase `name`."""
        return self.model_copy(update={"parallel": self.phases[name].parallel.over(self.parallel)})

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a plain name; use letters, digits, '.', '_' and '-', up to 100")
        return name

    @model_validator(mode="after")
    def _names_agree(self) -> RunConfig:
        if self.data.prompt.template == "chat" and isinstance(self.model.language.tokenizer, NewTokenizer):
            raise ValueError(
                "data.prompt: `chat` needs a tokenizer with a chat template, but a newly trained tokenizer has none"
            )
        for phase_name, phase in self.phases.items():
            if not PLAIN_NAME.fullmatch(phase_name):
                raise ValueError(f"phases: {phase_name!r} is not a plain name; use letters, digits, '.', '_' and '-'")
            try:
                parallel = phase.parallel.over(self.parallel)
            except ValidationError as error:
                first = error.errors()[0]
                raise ValueError(
                    f"phases.{phase_name}.parallel: {first['msg'].removeprefix('Value error, ')}"
                ) from None
            if self.training.peer_copies is not None and parallel.offload_optimizer == "nvme":
                raise ValueError(
                    "training.peer_copies: would copy into memory the states that parallel.offload_optimizer: nvme keeps "
                    "out of it"
                )
            if phase.matrices == "muon" and (parallel.zero_stage or parallel.tensor > 1):
                why = f"parallel.tensor is {parallel.tensor}" if parallel.tensor > 1 else "this phase partitions them"
                raise ValueError(
                    f"phases.{phase_name}.matrices: muon needs whole matrices, but {why}; use adamw"
                    + ("" if parallel.tensor > 1 else f", or phases.{phase_name}.parallel.zero_stage: 0")
                )
            if phase.pack is not None and phase.pack < self.data.max_tokens:
                raise ValueError(
                    f"phases.{phase_name}.pack: a row of {phase.pack} tokens is too short for samples of up to "
                    f"{self.data.max_tokens} tokens (data.max_tokens)"
                )
            for set_name in phase.mix:
                if set_name not in self.data.sets:
                    raise ValueError(
                        f"phases.{phase_name}.mix: no data set {set_name!r} under data.sets"
                        f"{nearest(set_name, self.data.sets)}"
                    )
            if phase.validate_every is not None:
                self._held_out(phase_name)
            self._can_use_features(phase_name)
        for set_name, data_set in self.data.sets.items():
            if data_set.task is not None and data_set.task not in self.data.prompt.instructions:
                raise ValueError(
                    f"data.sets.{set_name}.task: no instruction {data_set.task!r} under data.prompt.instructions"
                    f"{nearest(data_set.task, self.data.prompt.instructions)}; to change only the template, set "
                    "data.prompt.template, because data.prompt=NAME replaces the whole section"
                )
        return self

    def _can_use_features(self, phase_name: str) -> None:
        """Raises ValueError if a phase has features but trains the tower, or has features for only some data sets."""
        phase = self.phases[phase_name]
        kept = [name for name in phase.mix if self.data.sets[name].features is not None]
        if not kept:
            return
        if "vision" in phase.train:
            raise ValueError(
                f"phases.{phase_name}.train: names vision, but data.sets.{kept[0]}.features come from a frozen tower; "
                "remove one of the two"
            )
        lacking = next((name for name in phase.mix if name not in kept), None)
        if lacking is not None:
            raise ValueError(
                f"phases.{phase_name}.mix: {kept[0]} has features and {lacking} has none; give `features` to all data "
                "sets of a phase, or to none"
            )
        if self.model.vision.image.fit == "native":
            raise ValueError(f"data.sets.{kept[0]}.features: not for model.vision.image.fit: native")

    def _held_out(self, phase_name: str) -> None:
        """Raises ValueError if a phase would validate on an unknown data set, or on data that this run trains on."""
        validation = self.phases[phase_name].validation
        trained = {name for phase in self.phases.values() for name in phase.mix}
        for name in validation.sets or self.phases[phase_name].mix:
            if name not in self.data.sets:
                raise ValueError(
                    f"phases.{phase_name}.validation.sets: no data set {name!r} under data.sets"
                    f"{nearest(name, self.data.sets)}"
                )
            if name in trained and self.data.sets[name].split == validation.split:
                raise ValueError(
                    f"phases.{phase_name}.validation.split: this run trains on {validation.split!r} of {name}; choose a "
                    "held-out split"
                )
