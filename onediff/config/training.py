"""Settings of phases, the optimizer and the training loop."""

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
Beta = Annotated[float, Field(ge=0, lt=1)]

Checkpointing = Literal["none", "selective", "full"]


def mode_of(value: object) -> object:
    """Maps `true` to `full` and `false` to `none`; returns anything else unchanged."""
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


class InitConfig(Section):
    """Parts that start from a trained model, each given by an address: the folder of an export, or `RUN`, `RUN@STEP`,
    `RUN@best`, `RUN@PHASE`, `RUN@PHASE:STEP` or `RUN@PHASE:best`. A string instead of a mapping applies to all parts."""

    vision: str | None = None
    """The tower."""
    delta: str | None = None
    """The Visual Delta Module."""
    projector: str | None = None
    """The projector."""
    language: str | None = None
    """The language model, including a tokenizer trained with it. A phase with the same `lora` continues the source's
    adapters; otherwise they are merged."""

    @model_validator(mode="before")
    @classmethod
    def _one_for_all(cls, values: Any) -> Any:
        return dict.fromkeys(get_args(Part), values) if isinstance(values, str) else values

    @model_validator(mode="after")
    def _names_a_part(self) -> InitConfig:
        if not self.addresses:
            raise ValueError("names no part; write an address for the whole model, or remove `init`")
        return self

    @property
    def addresses(self) -> dict[str, str]:
        """The address of each part that has one."""
        return {part: address for part in get_args(Part) if (address := getattr(self, part)) is not None}


class OptimizerConfig(Section):
    """AdamW and its schedule; a phase may override `lr`."""

    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the moments."""
    eps: float = Field(1e-8, gt=0)
    """Added to the square root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices; biases, norms and learned tokens have none."""
    clip: float = Field(1.0, gt=0)
    """Global gradient norm to clip to."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate schedule after the warm-up."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of a phase's steps over which the learning rate rises from 0."""
    final_lr: float = Field(0.0, ge=0, le=1)
    """Final learning rate as a share of the peak."""
    kernel: Literal["auto", "apex", "torch", "plain"] = "auto"
    """Implementation of AdamW: NVIDIA's Apex, torch's fused kernel, or torch's plain one. `auto` uses Apex on a GPU if it is
    installed, else torch's fused kernel, which also runs on the CPU."""


class ValidationConfig(Section):
    """The held-out rows on which a phase measures its validation loss."""

    split: str = "val"
    """The split of the rows."""
    sets: tuple[str, ...] = ()
    """Names under `data.sets`; by default the data sets of the phase's mix that have the split."""
    rows: int = Field(256, gt=0)
    """Rows per data set, the same every time, chosen by `data.seed`."""


class BestConfig(Section):
    """How to choose the best checkpoint of a phase. It is kept in addition to the newest ones, as `RUN@best`."""

    metric: str = "validation/loss"
    """`validation/loss`, `validation/loss/<data set>`, or a score of `evaluate_every` such as `evaluation/CIDEr`."""
    direction: Literal["lower", "higher"] | None = None
    """Which direction is better; by default lower for a loss, and the metric's own direction for a score."""
    stop_after: int | None = Field(None, gt=0)
    """Early stopping: end the phase after this many measurements in a row without a new best; by default never."""

    @model_validator(mode="after")
    def _is_measured(self) -> BestConfig:
        if not any(map(self.is_kin_of, ("validation/", "evaluation/"))):
            raise ValueError(f"metric: {self.metric!r} must start with validation/ or evaluation/")
        return self

    def is_kin_of(self, metric: str) -> bool:
        """Whether the metric is measured together with `metric`."""
        return self.metric.partition("/")[0] == metric.partition("/")[0]

    @property
    def lower(self) -> bool:
        """Whether a lower value is better."""
        return self.direction == "lower" if self.direction else self.is_kin_of("validation/")


class PhaseConfig(Section):
    """One phase of training: its data, trained parts and length."""

    mix: dict[str, float] = Field(min_length=1)
    """Weight of each data set, by its name under `data.sets`."""
    couple: bool | str = False
    """Coupled Sample Training: join single-image samples into pseudo pairs on the fly (paper, section 3.3). `true` joins
    random samples; `similar_captions`, or a rule from another package, joins samples that are hard to tell apart."""
    train: tuple[Part, ...] = ("vision", "delta", "projector", "language")
    """Parts to train; the others stay bit-identical and need no memory for gradients or optimizer states."""
    vision_last: int | None = Field(None, gt=0)
    """Train only this many of the vision tower's last layers; by default all of them."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the language model's own weights, which stay frozen. The next phase continues with
    the same adapters, or merges them first if its `lora` differs."""
    steps: int | None = Field(None, gt=0)
    """Optimizer steps; set this or `epochs`."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the mix: the phase ends when the data set that takes longest at its weight has been read this many
    times."""
    global_batch: int = Field(gt=0)
    """Rows per optimizer step over all ranks; also the number of lanes."""
    micro_batch: int = Field(gt=0)
    """Rows that a rank computes at once; gradients accumulate over its share of the global batch."""
    pack: int | None = Field(None, gt=0)
    """Pack several samples into rows of this many tokens, with attention confined to each sample. At least
    `data.max_tokens`; best at several times the typical sample. By default each row holds one sample, padded to the longest
    in its micro-batch."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate, instead of `optimizer.lr`."""
    lr_of: dict[Part, Annotated[float, Field(gt=0)]] = {}
    """Peak learning rate by part."""
    weight_decay_of: dict[Part, Annotated[float, Field(ge=0)]] = {}
    """Weight decay by part, instead of `optimizer.weight_decay`."""
    matrices: Literal["adamw", "muon"] = "adamw"
    """Rule that updates the matrices of layers: AdamW, or Muon, which orthogonalises their averaged gradient and often needs
    far fewer steps. Muon needs whole matrices, so `zero_stage: 0` and no tensor parallelism in this phase; biases, norms and
    embeddings remain with AdamW. Its updates are as large as AdamW's at the same rate."""
    activation_checkpointing: Checkpointing | None = None
    """Activation checkpointing, instead of `training.activation_checkpointing`; a phase that trains few parameters often
    needs none."""
    parallel: PhaseParallelConfig = PhaseParallelConfig()
    """This phase's exceptions from the run's `parallel`."""
    objective: str = "captions"
    """The loss to minimise: `captions`, the next-token loss; `words`, for a first phase in front of a pretrained language
    model, in which image and delta tokens learn which of its micro-batch's words a caption has, without a pass of the
    language model, so its numbers depend on `micro_batch` and the number of ranks; or an objective from another package."""
    checkpoint_every: int = Field(500, gt=0)
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = Field(2, gt=0)
    """Number of the phase's newest checkpoints to keep."""
    keep_every: int | None = Field(None, gt=0)
    """Also keep checkpoints at multiples of this many steps."""
    evaluate_every: int | None = Field(None, gt=0)
    """Steps between evaluations during training, as configured in `evaluation`, whose `limit` bounds the cost; by default
    none. All ranks caption; rank 0 scores while the others wait."""
    validate_every: int | None = Field(None, gt=0)
    """Steps between measurements of `validation/loss` on held-out rows; by default none."""
    validation: ValidationConfig = ValidationConfig()
    """The rows to validate on."""
    best: BestConfig | None = None
    """Keep the best checkpoint by a metric, with optional early stopping; by default neither."""

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
            raise ValueError(f"mix.{bad}: weight {self.mix[bad]} is not above 0; remove the data set instead")
        for key in ("lr_of", "weight_decay_of"):
            strangers = set(getattr(self, key)) - set(self.train)
            if strangers:
                raise ValueError(f"{key}.{sorted(strangers)[0]}: this phase does not train this part")
        if self.vision_last is not None and "vision" not in self.train:
            raise ValueError("vision_last: needs `vision` in `train`")
        if self.lora is not None and "language" not in self.train:
            raise ValueError("lora: needs `language` in `train`")
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
    """Copies of each rank's weights, optimizer states and data cursor in the memory of its own node and of the next one. A
    restart within the job uses them if they are newer than the newest checkpoint. They do not outlive the job."""

    repeat_at_most: int = Field(ge=2)
    """The most steps that such a restart repeats. A copy is made at half this interval; training waits if the previous copy
    has not arrived by then."""


class TrainingConfig(Section):
    """Settings for all phases."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """`bf16` computes in bf16 with fp32 master weights; `fp32` computes in fp32 (exactly repeatable on CPU)."""
    activation_checkpointing: Checkpointing = "none"
    """What the tower and the language model recompute in the backward pass: `none` recomputes nothing; `selective` keeps the
    results of matrix products and attention and recomputes the rest, at almost no cost in time; `full` keeps only each
    layer's input, at a third more arithmetic if everything trains. `true` is `full`, `false` is `none`."""
    save_in_background: bool = True
    """Write checkpoints in the background, from a copy in host memory as large as what each rank writes. Otherwise, and with
    optimizer states on NVMe, training waits and no copy is made."""
    peer_copies: PeerCopiesConfig | None = None
    """In-memory checkpoints on two nodes, for runs that `onediff launch` starts on Slurm; by default none. Two generations
    are kept, so `/dev/shm` of each node holds four times what its ranks write of a checkpoint, and the ranks hold that
    amount once more in memory."""
    norms: Literal["auto", "apex", "torch", "plain"] = "auto"
    """Implementation of norms: NVIDIA's Apex, torch's fused kernels, or those of transformers unchanged. `auto` uses the
    first one available."""
    loss_chunk: int | None = Field(4096, gt=0)
    """Targets whose logits are computed at once. Beyond this, the loss is computed in chunks, with a second pass through the
    language model's head. `null` computes all logits at once."""
    attention: Literal["auto", "flash_attn_3", "flash_attn_4", "flash_attn_2", "torch_varlen", "sdpa", "reference"] = (
        "auto"
    )
    """Attention kernel: flash-attn's, torch's for packed sequences, torch's `scaled_dot_product_attention`, or plain matrix
    products. `auto` uses the first one that is installed and supports this machine's GPU."""
    seed: int = 0
    """Seed of initial weights and dropout."""
    deterministic: bool = False
    """Use only deterministic kernels, so that a run on GPUs is repeatable bit for bit. Slower, especially in attention's
    backward pass. No effect on a CPU, which is always deterministic."""
    profile: ProfileConfig | None = None
    """Trace some steps with torch's profiler; `{}` uses the defaults."""
    bad_steps: BadStepsConfig = BadStepsConfig()
    """How to handle non-finite gradients and loss spikes."""
    log_every: int = Field(1, gt=0)
    """Steps between logged metrics."""
    captions_every: int | None = Field(None, gt=0)
    """Steps between sample captions in MLflow; by default only at the end of a phase."""
    sample_captions: int = Field(8, ge=0)
    """Number of held-out pairs to caption as samples for people."""

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _by_yes_or_no(cls, value: object) -> object:
        return mode_of(value)
