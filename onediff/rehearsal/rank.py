"""One rank of a rehearsal in its own process, which builds the model and engine of each phase and takes a step."""

from __future__ import annotations

import gc
import json
import time
import traceback
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onediff.config.addresses import is_url
from onediff.config.compose import load_run
from onediff.config.data import DataConfig
from onediff.config.parallel import ranks_within
from onediff.config.run import RunConfig
from onediff.config.training import PhaseConfig
from onediff.data.batch import Batch
from onediff.data.loader import RankShare
from onediff.data.segments import each_tensor
from onediff.errors import UserError
from onediff.model.build import architecture_only
from onediff.parallel.topology import Topology, create_topology
from onediff.plan.missing import missing_data
from onediff.ranks import Ranks
from onediff.rehearsal import batches
from onediff.rehearsal.collectives import Recorder, group_names
from onediff.rehearsal.held import Alive, size_of
from onediff.rehearsal.role import Held, Played, Role, rehearsed
from onediff.rehearsal.shallow import shallow
from onediff.rehearsal.stage import without_memory, without_other_ranks
from onediff.training.data import phase_sources
from onediff.training.engine import Engine
from onediff.training.start import built, check_model
from onediff.zero import alone


def main(role: Role) -> None:
    """Writes a `Played` for each phase to `role.out`."""
    config = rehearsed(load_run(role.config, role.overrides))
    if role.layers is not None:
        config = shallow(config, role.layers)
    per_node = min(role.per_node, role.world)
    ranks = Ranks(role.rank, role.rank % per_node, role.world, per_node, "127.0.0.1", 1)
    played: list[dict[str, Any]] = []
    with ExitStack() as stack:
        stack.enter_context(without_other_ranks(ranks))
        topology = create_topology(config.parallel, ranks)
        for name in role.phases or config.phases:
            try:
                played.append(asdict(play(config.of_phase(name), name, topology, role.text_alone)))
            except UserError as error:
                played.append(asdict(Played(name, fault=" ".join(str(error).split()))))
            except Exception as error:  # any exception that would end training
                played.append(asdict(Played(name, fault=_described(error))))
            gc.collect()
    Path(role.out).write_text(json.dumps(played))


def play(config: RunConfig, name: str, topology: Topology, text_alone: bool) -> Played:
    """Builds a phase and takes one step of at most two micro-batches. Raises whatever training would raise."""
    phase = config.phases[name]
    check_model(config.model, phase, name, config.parallel)
    check_data(config.data, phase)
    batch = batches.smallest(config.model.vision, phase) if text_alone else batches.largest(config, name)
    with without_memory() as fake:
        return taken(config, name, topology, each_tensor(batch, fake.from_tensor))


def taken(config: RunConfig, name: str, topology: Topology, batch: Batch) -> Played:
    """`play` with every micro-batch equal to `batch`, on real or fake tensors, with or without other ranks."""
    began, phase = time.perf_counter(), config.phases[name]
    share = RankShare.of_rank(phase.global_batch, phase.micro_batch, topology.dp_rank, topology.dp_size)
    micro_batches = min(2, share.micro_batches)
    few = phase.model_copy(update={"global_batch": micro_batches * phase.micro_batch * topology.dp_size})
    recorder, alive = Recorder(group_names(topology)), Alive()
    with recorder, alive:
        model = built(config, architecture_only(config.model), name, topology, filled_later=True)
        model.to = lambda *_, **__: model  # type: ignore[method-assign]  # torch would swap fake parameters
        engine = Engine(model, config, few, topology)
        engine.sharded.create_moments(list(engine.sharded.shards()))
        before, gradients = len(recorder.calls), 0
        computed, begun = list[int](), list[int]()
        take = engine.sharded.step

        def step() -> None:
            nonlocal gradients
            gradients = size_of(alone.gradients(engine.sharded))
            computed.append(len(recorder.calls) - before)
            take()
            begun.append(len(recorder.calls) - before)

        engine.sharded.step = step  # type: ignore[method-assign]
        alive.peak = alive.bytes
        learns, ranks = engine.sharded.stage == 3, topology.ranks
        copies = ranks_within(config.parallel.shard_within, topology.tp_size, ranks.world, ranks.local_world) > 0
        for number in range(2 if copies or (learns and micro_batches == 1) else 1):
            begun.append(len(recorder.calls) - before)
            engine.step([batch] * micro_batches, number, 2)
        held = Held(
            weights=size_of(alone.weights(engine.sharded)),
            gradients=gradients,
            optimizer=size_of(alone.optimizer_states(engine.sharded)),
            peak=alive.peak,
        )
        engine.close()
    calls = [list(call) for call in recorder.calls]
    return Played(
        name=name,
        rows=_rows(batch),
        micro_batches=share.micro_batches,
        rehearsed=micro_batches,
        lanes=list(share.lanes),
        building=calls[:before],
        step=calls[before:],
        times=_times(begun, computed[-1], len(calls) - before, share.micro_batches, learns, copies),
        held=held,
        seconds=time.perf_counter() - began,
    )


def _times(
    begun: list[int], computed: int, end: int, micro_batches: int, learns: bool, copies: bool
) -> list[list[int]]:
    """`Played.times` for a step of at most two micro-batches.

    `begun` holds the number of collectives before each micro-batch and after the last, `computed` the number at the end of
    the last backward pass, and `end` the total.

    During the first micro-batch, ZeRO-3 records the order in which weights are used, and gathers them more often than later
    (`learns`), so the second micro-batch represents all later ones. If nodes keep `copies` of the weights, the first
    micro-batch of each later step renews them. At other stages, the last micro-batch reduces the gradients of all.
    """
    last = begun[-2]
    if copies and micro_batches > 1:
        return [[begun[-3], 0], [last, 1], [computed, micro_batches - 1], [end, 1]]
    if learns:
        return [[last, 0], [computed, micro_batches], [end, 1]]
    return [[last, max(1, micro_batches - 1)], [end, 1]]


def check_data(data: DataConfig, phase: PhaseConfig) -> None:
    """Opens the phase's data sets that are on this machine, as training does. Raises UserError."""
    away = {one.name for one in missing_data(data, [phase], quick=True)}
    here = {data_set: weight for data_set, weight in phase.mix.items() if data_set not in away}
    here = {data_set: weight for data_set, weight in here.items() if not is_url(str(data.sets[data_set].folder))}
    phase_sources(data, phase.model_copy(update={"mix": here}))


def _rows(batch: Batch) -> str:
    rows, tokens = batch.token_ids.shape
    return f"{rows} × {tokens} tokens, {len(batch.images)} images, {batch.pairs} pairs, {batch.targets} targets"


def _described(error: Exception) -> str:
    """An internal exception in one line, with the innermost place in this project."""
    here = str(Path(__file__).parents[1])
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(here)]
    last = [frame for frame in own if "/rehearsal/" not in frame.filename] or own
    place = f" ({Path(last[-1].filename).name}:{last[-1].lineno})" if last else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"
