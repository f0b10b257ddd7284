"""Evaluation settings. Imports no torch, for planning and launching."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from onediff.config.plugins import METRICS
from onediff.config.section import Section, nearest

PROTOCOLS = (
    "plain",
    "spot-the-diff",
    "spot-the-diff-joined",
    "clevr-change",
    "image-editing-request",
    "birds-to-words",
    "levir-cc",
    "demo",
)
"""Benchmark protocols by name, one module each in `onediff/evaluation/protocols/`."""


class EvaluationConfig(Section):
    """Which pairs to caption, how to generate captions, and by which protocol to score them."""

    protocol: str = "plain"
    """The benchmark's rules, such as which pairs count and how references are treated; `onediff score --help` lists them."""
    split: str = "test"
    """The split of the data set to caption."""
    limit: int | None = Field(None, gt=0)
    """Caption only the first N pairs, for a quick check; the scores record this."""
    instruction: str | None = None
    """Instruction for all pairs, instead of each pair's own or the one its data set was trained with. `protocol` uses the
    protocol's instruction."""
    batch_size: int = Field(16, gt=0)
    """Pairs per batch on each rank. In half precision, captions can depend on it."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of weights and arithmetic; `auto` is bf16 on a GPU that supports it, else fp32."""
    tensor: int = Field(1, ge=1)
    """Tensor-parallel size: the ranks that share one copy of the language model. The pairs are divided among the resulting
    groups."""
    attention_maps: bool = True
    """Record attention maps of the delta module for the report; costs a second pass through the tower."""
    max_new_tokens: int = Field(64, gt=0)
    """Longest caption, in tokens."""
    num_beams: int = Field(1, gt=0)
    """1 for greedy search or sampling; more for beam search of that width."""
    length_penalty: float = 1.0
    """Exponent of the length by which beam search divides a sequence's log-probability; larger values favour longer
    captions."""
    do_sample: bool = False
    """Sample tokens, by `seed`, instead of taking the most likely."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature: below 1 sharpens the distribution, above 1 flattens it."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most likely tokens whose probabilities add up to this."""
    top_k: int = Field(0, ge=0)
    """Sample from the K most likely tokens; 0 for all."""
    cuda_graphs: bool = False
    """Record a step of greedy search as a CUDA graph once per batch and replay it. Captions stay the same. If this is not
    possible (no GPU, tensor parallelism, beams, sampling), the log says why."""
    seed: int = Field(0, ge=0)
    """Seed of sampling and of the bootstrap."""
    metrics: list[str] = []
    """Additional metrics: `bertscore:MODEL`, `clipscore:MODEL` or `pacscore:MODEL` with a model's folder or name, `spice`,
    or one from another package."""
    bootstrap: int = Field(1000, ge=0)
    """Bootstrap resamples for each 95 % interval; 0 for no intervals."""

    @field_validator("metrics")
    @classmethod
    def _exist(cls, metrics: list[str]) -> list[str]:
        for metric in metrics:
            METRICS.check(metric.partition(":")[0])
        return metrics

    @field_validator("protocol")
    @classmethod
    def _known(cls, protocol: str) -> str:
        if protocol not in PROTOCOLS:
            raise ValueError(f"no protocol {protocol!r}{nearest(protocol, PROTOCOLS)}")
        return protocol

    @model_validator(mode="after")
    def _one_way_of_decoding(self) -> EvaluationConfig:
        if self.do_sample and self.num_beams > 1:
            raise ValueError("do_sample and num_beams > 1 exclude each other: choose sampling or beam search")
        if not self.do_sample and (self.temperature != 1 or self.top_p != 1 or self.top_k != 0):
            raise ValueError("temperature, top_p and top_k affect only sampling: set do_sample: true")
        return self
