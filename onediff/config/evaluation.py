"""How a model is scored. Torch-free, so that planning and launching can read it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

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
"""Rules of benchmarks by name, one module each in `onediff/evaluation/protocols/`."""


class EvaluationConfig(Section):
    """Which pairs are captioned, how the captions are generated, and under which protocol they are scored."""

    protocol: str = "plain"
    """The benchmark's rules: which pairs count, how references are treated; `onediff score --help` lists them."""
    split: str = "test"
    """The split of the data set to caption."""
    limit: int | None = Field(None, gt=0)
    """Caption only the first N pairs, for a quick look; the scores say so."""
    instruction: str | None = None
    """Ask this of every pair, instead of its own instruction or the one its data set was trained with; `protocol` asks
    what the protocol prescribes."""
    batch_size: int = Field(16, gt=0)
    """Pairs in one batch on each rank. In half precision, captions can depend on it."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of weights and arithmetic; `auto` is bf16 on a GPU that supports it, else fp32."""
    tensor: int = Field(1, ge=1)
    """Ranks that share one copy of the language model (tensor parallelism); the remaining factor of the ranks shares the
    pairs."""
    attention_maps: bool = True
    """Record where the delta module looked, for the report; costs a second pass through the tower."""
    max_new_tokens: int = Field(64, gt=0)
    """Longest caption, in tokens."""
    num_beams: int = Field(1, gt=0)
    """1 is greedy search (or sampling), more is beam search of that width."""
    length_penalty: float = 1.0
    """Exponent of the length by which beam search divides a sequence's log-probability; above 1 prefers longer."""
    do_sample: bool = False
    """Sample tokens, following `seed`, instead of taking the likeliest."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature: below 1 sharpens the distribution, above 1 flattens it."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the likeliest tokens that together have this probability."""
    top_k: int = Field(0, ge=0)
    """Sample from the K likeliest tokens; 0 is all of them."""
    cuda_graphs: bool = False
    """Record a step of greedy search once per batch and let the GPU replay it; captions stay the same. If this is not
    possible (no GPU, tensor parallelism, beams, sampling), a line says why."""
    seed: int = Field(0, ge=0)
    """Seed of sampling and of the bootstrap."""
    metrics: list[str] = []
    """Metrics to compute in addition to the usual ones: `bertscore:MODEL`, `clipscore:MODEL` or `pacscore:MODEL` with a
    model's folder or name, `spice`, or one from another package."""
    bootstrap: int = Field(1000, ge=0)
    """Resamples behind each 95 % interval; 0 omits intervals."""

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
            raise ValueError("temperature, top_p and top_k act on sampling only: set do_sample: true")
        return self
