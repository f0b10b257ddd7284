"""The data of one phase: its sources, its stream, its length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from onediff.config.tree import RunConfig
from onediff.data.manifest import FILE
from onediff.data.packing import Packer
from onediff.data.rows import RowMaker
from onediff.data.sample import BadSample, parse_sample
from onediff.data.stream import Source, Stream
from onediff.training.config import PhaseConfig


def phase_sources(config: RunConfig, phase: PhaseConfig) -> list[Source]:
    """The data sets of a phase's mix, opened. Raises UserError for what is missing."""
    return [
        Source.open(
            name,
            config.data.sets[name].folder,
            lanes=phase.global_batch,
            seed=config.data.seed,
            block=config.data.block,
            weight=weight,
            task=config.data.sets[name].task,
            cache=config.data.cache,
        )
        for name, weight in phase.mix.items()
    ]


def phase_stream(config: RunConfig, phase: PhaseConfig, maker: RowMaker) -> Stream:
    """The rows of a phase."""
    sources, data = phase_sources(config, phase), config.data
    return Stream(sources, maker, phase.couple, data.seed, data.bad_in_a_row, phase.pack)


def phase_steps(phase: PhaseConfig, stream: Stream) -> int:
    """Optimizer steps of a phase: `steps`, or as many as `epochs` of the source that lasts longest take.

    How many samples fit into a packed row is measured on the first of them, so the end of such a phase is a few samples
    early or late.
    """
    if phase.steps is not None:
        return phase.steps
    assert phase.epochs is not None
    total = sum(source.weight for source in stream.sources)
    samples = max(source.lanes.samples * total / source.weight for source in stream.sources)
    a_row = Packer(stream, phase.pack).samples_per_row(phase.global_batch) if phase.pack else 1
    return math.ceil(phase.epochs * samples / a_row / phase.global_batch)


def training_texts(config: RunConfig) -> Iterator[str]:
    """Every caption and turn that training reads, and the words around them: what a new tokenizer is learned from."""
    prompt = config.data.prompt
    yield from (prompt.system, prompt.user, prompt.assistant, prompt.couple_answer, *prompt.instructions.values())
    for name in sorted({name for phase in config.phases.values() for name in phase.mix}):
        source = Source.open(name, config.data.sets[name].folder, lanes=1, seed=0, block=1, cache=config.data.cache)
        for shard, count in enumerate(source.lanes.shard_samples):
            for number in range(count):
                try:
                    sample = parse_sample(source.shards.read(shard, number))
                except BadSample:
                    continue  # counted and reported when training reads it
                yield from (" " + caption for caption in sample.captions)
                yield from (turn["value"] for turn in sample.conversations)


def manifest_files(config: RunConfig, phase: PhaseConfig) -> list[Path]:
    """The manifests of the data sets of a phase that have one on disk (tars written by others may not)."""
    folders = [Path(config.data.sets[name].folder) for name in phase.mix]
    return [folder / FILE for folder in folders if (folder / FILE).is_file()]
