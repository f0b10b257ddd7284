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
    """The split of the data set that is captioned."""
    limit: int | None = Field(None, gt=0)
    """Only the first so many pairs, for a quick look; the scores then say so."""
    instruction: str | None = None
    """Asked of every pair instead of its own instruction, or of the one that its data set was trained with; `protocol` asks
    what the protocol says."""
    batch_size: int = Field(16, gt=0)
    """Pairs captioned at once by one rank. Captions in half precision can depend on it."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of weights and arithmetic; `auto` is bf16 on a GPU that has it, else fp32."""
    tensor: int = Field(1, ge=1)
    """Ranks over which one copy of the language model is cut; the other factor of the ranks shares the pairs."""
    heatmaps: bool = True
    """Keep with each caption where the delta module looked, for the report; costs the tower once more."""
    max_new_tokens: int = Field(64, gt=0)
    """A caption ends after so many tokens at the latest."""
    num_beams: int = Field(1, gt=0)
    """1 is greedy search (or sampling), more is beam search of that width."""
    length_penalty: float = 1.0
    """Exponent of the length by which beam search divides a sequence's log-probability; above 1 prefers longer."""
    do_sample: bool = False
    """Draw tokens instead of taking the likeliest; the draw follows `seed`."""
    temperature: float = Field(1.0, gt=0)
    """Of the drawing: below 1 sharpens, above 1 flattens the distribution."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability."""
    top_k: int = Field(0, ge=0)
    """Draw from so many of the likeliest tokens; 0 is all."""
    cuda_graphs: bool = False
    """Record a step of greedy search once for each batch and let the GPU repeat it, for the same captions. Where that
    cannot be (no GPU, a model cut over several, beams, sampling), a line says why."""
    seed: int = Field(0, ge=0)
    """Of the drawing and of the bootstrap."""
    metrics: list[str] = []
    """Computed besides the usual ones: `bertscore:MODEL`, `clipscore:MODEL` by a model's folder or name, `spice`, or one of
    another package."""
    bootstrap: int = Field(1000, ge=0)
    """Resamples behind each 95 % interval; 0 leaves intervals out."""

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
