"""The data of one phase: its sources, its stream and its length."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from onediff.config.data import DataConfig
from onediff.config.model import NewTokenizer
from onediff.config.run import RunConfig
from onediff.config.training import PhaseConfig
from onediff.data.lengths import Lengths, first_lengths, too_long
from onediff.data.manifest import FILE
from onediff.data.packing import Packer
from onediff.data.rows import Processor
from onediff.data.sample import BadSample, parse_sample
from onediff.data.stream import Source, Stream
from onediff.model.build import build_processor
from onediff.model.tokenizer import learn_tokenizer
from onediff.runs.folder import RunFolder
from onediff.training.init import take_tokenizer


def phase_sources(data: DataConfig, phase: PhaseConfig) -> list[Source]:
    """The data sets of a phase's mix, opened. Raises UserError for a missing one."""
    return [
        Source.open(
            name,
            data.sets[name].folder,
            lanes=phase.global_batch,
            seed=data.seed,
            block=data.block,
            weight=weight,
            task=data.sets[name].task,
            cache=data.cache,
            features=data.sets[name].features_folder,
        )
        for name, weight in phase.mix.items()
    ]


def phase_stream(data: DataConfig, phase: PhaseConfig, processor: Processor) -> Stream:
    """The rows of a phase."""
    return Stream(phase_sources(data, phase), processor, phase.couple, data.seed, data.bad_in_a_row, phase.pack)


def phase_steps(phase: PhaseConfig, stream: Stream) -> int:
    """Optimizer steps of a phase: `steps`, or the steps that `epochs` of its longest-lasting source take.

    The number of samples per packed row is measured on the first ones, so a packed phase ends a few samples early or late.
    """
    if phase.steps is not None:
        return phase.steps
    assert phase.epochs is not None
    total = sum(source.weight for source in stream.sources)
    samples = max(source.lanes.samples * total / source.weight for source in stream.sources)
    a_row = Packer(stream, phase.pack).fill(phase.global_batch).samples if phase.pack else 1
    return math.ceil(phase.epochs * samples / a_row / phase.global_batch)


def processor_before_training(config: RunConfig, named: str, run: Path | None = None) -> tuple[Processor, Any]:
    """The processor and the tokenizer of a run that may not have started yet.

    A tokenizer that training would learn or copy is made the same way and thrown away. The run's folder is `run`, else
    `named` if the configuration came from a run's folder, else `runs/<name>`. Raises UserError.
    """
    run = run or (Path(named) if Path(named).is_dir() else Path("runs") / config.name)
    folder, wanted = RunFolder(run).tokenizer, config.model.language.tokenizer
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(wanted, NewTokenizer) and not folder.is_dir():
            folder = Path(scratch) / "tokenizer"
            make_tokenizer(config, wanted, folder)
        return build_processor(config.model, config.data, folder)


def make_tokenizer(config: RunConfig, wanted: NewTokenizer, target: Path) -> None:
    """Writes the run's own tokenizer: a new one, or that of the language model in `init`. Raises UserError."""
    if config.init is not None and config.init.language is not None:
        take_tokenizer(config.init, target)
    else:
        learn_tokenizer(training_texts(config.data, config.phases.values()), wanted.vocabulary, target)


def phase_lengths(data: DataConfig, phase: PhaseConfig, stream: Stream, lanes: int, samples: int) -> Lengths:
    """Lengths of the first samples of a stream, and the cost of padding and packing in a phase like this.

    Packed rows are as long as the phase's, or twice `data.max_tokens` if it does not pack. Raises UserError.
    """
    pack = phase.pack or 2 * data.max_tokens
    fill = Packer(stream, pack).fill(lanes)
    # One packed row replaces about this many padded ones.
    micro_batch = round(phase.micro_batch * fill.samples) if phase.pack else phase.micro_batch
    return Lengths(
        first_lengths(stream, lanes, samples),
        micro_batch,
        pack,
        fill,
        data.max_tokens,
        too_long(stream, lanes, samples),
        data.too_long == "cut",
    )


def data_set_lengths(
    data: DataConfig, phase: PhaseConfig, processor: Processor, folder: Path, samples: int = 4096
) -> Lengths:
    """The same for one split of a data set, as `phase` would read it. Raises UserError."""
    name = folder.parent.name
    source = Source.open(name, folder, lanes=1, seed=data.seed, block=data.block)
    lanes = max(1, min(32, source.lanes.samples // 2))  # places in the set to read from
    task = data.sets[name].task if name in data.sets else None
    source = Source.open(name, folder, lanes, data.seed, data.block, task=task)
    stream = Stream([source], processor, False, data.seed, data.bad_in_a_row)
    return phase_lengths(data, phase, stream, lanes, min(samples, source.lanes.samples))


def training_texts(data: DataConfig, phases: Iterable[PhaseConfig]) -> Iterator[str]:
    """Every caption and turn that these phases read, with the prompt's text: the corpus of a new tokenizer."""
    prompt = data.prompt
    if prompt.template != "chat":
        template = prompt.named()
        yield from (template.system, template.user, template.assistant)
    yield from (prompt.couple_answer, *(wording for task in prompt.instructions for wording in prompt.wordings(task)))
    for name in sorted({name for phase in phases for name in phase.mix}):
        source = Source.open(name, data.sets[name].folder, lanes=1, seed=0, block=1, cache=data.cache)
        for shard, count in enumerate(source.lanes.shard_samples):
            for number in range(count):
                try:
                    sample = parse_sample(source.shards.read(shard, number))
                except BadSample:
                    continue  # training counts and reports it
                yield from (" " + caption for caption in sample.captions)
                yield from (turn["value"] for turn in sample.conversations)


def manifest_files(data: DataConfig, phase: PhaseConfig) -> dict[str, Path]:
    """The manifests on disk of a phase's data sets, by name. Tars from other tools may have none."""
    files = {name: Path(data.sets[name].folder) / FILE for name in phase.mix}
    return {name: file for name, file in files.items() if file.is_file()}
