"""Phases and the optimizer."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from onediff.config.bad_steps import BadStepsConfig
from onediff.config.model import LoraConfig
from onediff.config.parallel import PhaseParallelConfig
from onediff.config.plugins import COUPLING_RULES, OBJECTIVES
from onediff.config.profile import ProfileConfig
from onediff.config.section import Section

Part = Literal["vision", "delta", "projector", "language"]


Checkpointing = Literal["none", "selective", "full"]


def mode_of(value: object) -> object:
    """`true` as `full` and `false` as `none`; anything else as it is."""
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


class InitConfig(Section):
    """Parts that start from a model trained before, by the address of each: the folder of an export, or `RUN`, `RUN@STEP`,
    `RUN@best`, `RUN@PHASE`, `RUN@PHASE:STEP`, `RUN@PHASE:best` of a run. An address alone is that of all four parts."""

    vision: str | None = None
    """The tower."""
    delta: str | None = None
    """The Visual Delta Module."""
    projector: str | None = None
    """The projector."""
    language: str | None = None
    """The language model, and with it a learned tokenizer. Adapters of the source go on in a phase with the same `lora`, and
    are merged for any other."""

    @model_validator(mode="before")
    @classmethod
    def _one_for_all(cls, values: Any) -> Any:
        return dict.fromkeys(get_args(Part), values) if isinstance(values, str) else values

    @model_validator(mode="after")
    def _names_a_part(self) -> InitConfig:
        if not self.addresses:
            raise ValueError("names no part; write an address for the whole model, or leave `init` out")
        return self

    @property
    def addresses(self) -> dict[str, str]:
        """The address of each part that has one."""
        return {part: address for part in get_args(Part) if (address := getattr(self, part)) is not None}


class OptimizerConfig(Section):
    """AdamW and its schedule; a phase may override `lr`."""

    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Moment decay."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices; biases, norms and learned tokens have none."""
    clip: float = Field(1.0, gt=0)
    """Largest global gradient norm."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of a phase's steps over which the learning rate rises from 0."""
    final_lr: float = Field(0.0, ge=0, le=1)
    """The learning rate at the end, as a share of the peak."""
    kernel: Literal["auto", "apex", "torch", "plain"] = "auto"
    """Which AdamW to use: NVIDIA's Apex, torch's fused one, or torch's plain one. `auto` takes Apex on a GPU if it is
    installed, else torch's fused one, which steps in one pass over memory on the CPU, too."""


class ValidationConfig(Section):
    """Which held-out rows a phase validates on."""

    split: str = "val"
    """The split that the rows are taken from."""
    sets: tuple[str, ...] = ()
    """Data sets under `data.sets`; by default those of the phase's mix that have the split."""
    rows: int = Field(256, gt=0)
    """Rows of each data set, chosen by `data.seed`: the same ones every time."""


class BestConfig(Section):
    """How the best checkpoint of a phase is chosen. It is kept beside the newest ones, and `RUN@best` names it."""

    metric: str = "validation/loss"
    """`validation/loss`, `validation/loss/<data set>`, or a score of `evaluate_every` such as `evaluation/CIDEr`."""
    direction: Literal["lower", "higher"] | None = None
    """Which is better; by default a lower loss, and of a score what its metric says."""
    stop_after: int | None = Field(None, gt=0)
    """The phase ends after this many measurements in a row without a new best, whatever `steps` says; by default it never
    does."""

    @model_validator(mode="after")
    def _is_measured(self) -> BestConfig:
        if not any(map(self.is_kin_of, ("validation/", "evaluation/"))):
            raise ValueError(f"metric: {self.metric!r} is neither of validation/… nor of evaluation/…")
        return self

    def is_kin_of(self, metric: str) -> bool:
        """Whether the metric is measured together with `metric`."""
        return self.metric.partition("/")[0] == metric.partition("/")[0]

    @property
    def lower(self) -> bool:
        """Whether a lower value is better."""
        return self.direction == "lower" if self.direction else self.is_kin_of("validation/")


class PhaseConfig(Section):
    """One phase of training: which data, which parts, for how long."""

    mix: dict[str, float] = Field(min_length=1)
    """Weight of each data set, by its name under `data.sets`."""
    couple: bool | str = False
    """Coupled Sample Training: single-image samples are joined on the fly into pseudo pairs (paper, section 3.3). `true`
    joins by chance, `similar_captions` those that are hard to tell apart, as does any rule that another package names."""
    train: tuple[Part, ...] = ("vision", "delta", "projector", "language")
    """Parts that train; the others stay bit-identical and cost neither gradient nor optimizer memory."""
    vision_last: int | None = Field(None, gt=0)
    """How many of the vision tower's last layers train; by default all of it, where it trains."""
    lora: LoraConfig | None = None
    """Of the language model only low-rank adapters train, beside its frozen matrices; by default all of it, where it
    trains. The next phase continues with the same adapters, or merges them first if its `lora` differs."""
    steps: int | None = Field(None, gt=0)
    """Optimizer steps; give this or `epochs`."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the mix: the phase ends when the data set that lasts longest, at its weight, has been read this
    many times."""
    global_batch: int = Field(gt=0)
    """Rows in one optimizer step, over all ranks; also the number of lanes."""
    micro_batch: int = Field(gt=0)
    """Rows that one rank computes at a time; the rest of its share is accumulated."""
    pack: int | None = Field(None, gt=0)
    """Pack several samples into rows of this many tokens, each sample attending only to itself. At least
    `data.max_tokens`; several times the usual sample is best. By default each sample has a row of its own, padded
    to the longest of its micro-batch."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate, instead of `optimizer.lr`."""
    lr_of: dict[Part, Annotated[float, Field(gt=0)]] = {}
    """Peak learning rate of single parts."""
    weight_decay_of: dict[Part, Annotated[float, Field(ge=0)]] = {}
    """Weight decay of single parts, instead of `optimizer.weight_decay`."""
    activation_checkpointing: Checkpointing | None = None
    """What layers keep for the backward pass, instead of `training.activation_checkpointing`: a phase that trains little
    often has room for everything."""
    parallel: PhaseParallelConfig = PhaseParallelConfig()
    """What this phase does differently from the run's `parallel`."""
    objective: str = "captions"
    """What the phase minimises: `captions`, the loss of the next token, or any objective that another package names."""
    checkpoint_every: int = Field(500, gt=0)
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = Field(2, gt=0)
    """How many of the phase's newest checkpoints are kept."""
    keep_every: int | None = Field(None, gt=0)
    """Checkpoints at multiples of this many steps are kept as well."""
    evaluate_every: int | None = Field(None, gt=0)
    """Steps between two evaluations in the loop, as the section `evaluation` says (its `limit` bounds what they cost); by
    default none. All ranks caption, rank 0 scores while the others wait."""
    validate_every: int | None = Field(None, gt=0)
    """Steps between two measurements of the loss on held-out rows, `validation/loss`; by default none."""
    validation: ValidationConfig = ValidationConfig()
    """Which rows those are."""
    best: BestConfig | None = None
    """Keeps the best checkpoint by a metric, and may end the phase early; by default neither."""

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _by_yes_or_no(cls, value: object) -> object:
        return mode_of(value)

    @field_validator("couple")
    @classmethod
    def _is_a_rule(cls, couple: bool | str) -> bool | str:
        if isinstance(couple, str):
            COUPLING_RULES.check(couple)
        return couple

    @field_validator("objective")
    @classmethod
    def _is_an_objective(cls, objective: str) -> str:
        OBJECTIVES.check(objective)
        return objective

    @model_validator(mode="after")
    def _is_possible(self) -> PhaseConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either `steps` or `epochs`")
        if not self.train:
            raise ValueError("`train` names no part")
        if self.global_batch % self.micro_batch:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}")
        bad = next((name for name, weight in self.mix.items() if weight <= 0), None)
        if bad is not None:
            raise ValueError(f"mix.{bad}: weight {self.mix[bad]} is not above 0; leave the data set out instead")
        for key in ("lr_of", "weight_decay_of"):
            strangers = set(getattr(self, key)) - set(self.train)
            if strangers:
                raise ValueError(f"{key}.{sorted(strangers)[0]}: this part does not train in this phase")
        if self.vision_last is not None and "vision" not in self.train:
            raise ValueError("vision_last: needs `vision` among the parts that `train` names")
        if self.lora is not None and "language" not in self.train:
            raise ValueError("lora: needs `language` among the parts that `train` names")
        if self.best is not None:
            needed = "validate_every" if self.best.is_kin_of("validation/") else "evaluate_every"
            if getattr(self, needed) is None:
                raise ValueError(f"best: {self.best.metric} needs `{needed}`")
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every {self.keep_every} is not a multiple of checkpoint_every {self.checkpoint_every}"
            )
        return self


class PeerCopiesConfig(Section):
    """Copies of each rank's weights, optimizer states and data cursor in the memory of its node and of the next one. A
    restart inside the job takes them up where they are newer than the newest checkpoint; they go with the job."""

    repeat_at_most: int = Field(ge=2)
    """The most steps that such a restart repeats. A copy is made after every half as many; the training waits for one that
    has not arrived when the next is due."""


class TrainingConfig(Section):
    """What all phases share."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """`bf16` computes in bf16 with fp32 master weights; `fp32` in fp32 (exactly repeatable on CPU)."""
    activation_checkpointing: Checkpointing = "none"
    """What layers of tower and language model keep for the backward pass: `none` of it is computed again; `selective`
    keeps results of matrix products and attention and computes the rest again, at hardly any cost in time; `full` keeps
    a layer's input only, at a third more arithmetic where everything trains. `true` is `full`, `false` is `none`."""
    save_in_background: bool = True
    """Write checkpoints while the training goes on, from a copy in the memory of the host that is as large as what each
    rank writes; without it, or with optimizer states on NVMe, the training waits, and no copy is made."""
    peer_copies: PeerCopiesConfig | None = None
    """Copies in the memory of two nodes, for runs that `onediff launch` starts on Slurm; by default none. Two generations
    are kept, so `/dev/shm` of a node holds four times what its ranks write of a checkpoint; once more as much lies in
    the memory of the ranks."""
    norms: Literal["auto", "apex", "torch", "plain"] = "auto"
    """Which norms to use: NVIDIA's Apex, torch's fused ones, or those of transformers unchanged. `auto` takes the
    first that this machine has."""
    loss_chunk: int | None = Field(4096, gt=0)
    """Targets of a micro-batch whose logits exist at a time; more are computed piece by piece, with a second pass through
    the language model's head. `null` makes all logits at once."""
    attention: Literal["auto", "flash_attn_3", "flash_attn_4", "flash_attn_2", "torch_varlen", "sdpa", "reference"] = (
        "auto"
    )
    """Which attention kernel to use: flash-attn's, torch's for packed sequences, torch's
    `scaled_dot_product_attention`, or plain matrix products. `auto` takes the first that is installed and supports
    this machine's GPU."""
    seed: int = 0
    """Initial weights and dropout."""
    deterministic: bool = False
    """Use only kernels that return the same bits for the same input, so that a run on GPUs repeats bit for bit. Slower,
    attention's backward pass above all. On a CPU, which always repeats, it changes nothing."""
    profile: ProfileConfig | None = None
    """Trace some steps with torch's profiler; `{}` takes the defaults."""
    bad_steps: BadStepsConfig = BadStepsConfig()
    """What is done about gradients that are not finite, and about spikes."""
    log_every: int = Field(1, gt=0)
    """Steps between logged metrics."""
    captions_every: int | None = Field(None, gt=0)
    """Steps between sample captions in the tracking; by default only at the end of a phase."""
    sample_captions: int = Field(8, ge=0)
    """Held-out pairs captioned for people to look at."""

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _by_yes_or_no(cls, value: object) -> object:
        return mode_of(value)
