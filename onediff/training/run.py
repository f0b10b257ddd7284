"""A run on the ranks of this job: its phases in order, each from the weights of the one before."""

from __future__ import annotations

import gc
import logging
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from onediff.config.compose import load_run, write_run
from onediff.config.difference import differences, flat, told
from onediff.config.model import ModelConfig, NewTokenizer
from onediff.config.run import RunConfig
from onediff.data.loader import Share, load
from onediff.errors import UserError
from onediff.model import attention
from onediff.model.build import architecture_only, build_processor
from onediff.model.families import check_packs
from onediff.model.fp8 import check_fp8
from onediff.model.onediff import OneDiffModel
from onediff.model.vision import architecture
from onediff.parallel.agreement import gathered, raise_on_all_ranks
from onediff.parallel.placement import Placement
from onediff.parallel.ranks import initialize_distributed, shutdown
from onediff.parallel.topology import Topology, create_topology
from onediff.runs.folder import RunFolder
from onediff.runs.goodput import goodput_metrics
from onediff.runs.section import keep_heartbeat, stage
from onediff.tracking import NodeMetrics, Tracker
from onediff.tracking.place import how_to_look, tracking_uri
from onediff.tracking.scrub import scrubbed
from onediff.training.checkpoint import latest_checkpoint, load_weights
from onediff.training.checkpoint.folder import step_of
from onediff.training.data import make_tokenizer, manifest_files, phase_steps, phase_stream
from onediff.training.engine import Engine
from onediff.training.evaluations import Evaluations
from onediff.training.faults import TrainingFault
from onediff.training.image_config import require_same_images, warn_of_crop
from onediff.training.init import Start
from onediff.training.loop import PhaseLoop
from onediff.training.measures import Measures
from onediff.training.meter import FlopCounter
from onediff.training.pace import StragglerMonitor
from onediff.training.parts import trainable
from onediff.training.samples import Samples
from onediff.training.stop import Stopped, StopRequest
from onediff.training.validation import Validation
from onediff.zero.nvme import swap_folder
from onediff.zero.settings import deepspeed_config

log = logging.getLogger(__name__)

EXIT_STOPPED = 75
"""EX_TEMPFAIL: stopped on request with a checkpoint; run it again to go on."""
EXIT_NOT_A_NUMBER = 3


def train(config: RunConfig, path: Path, phases: Sequence[str], resume: bool) -> int:
    """Trains `phases` of `config` in the run folder `path` on all ranks of this job; returns the exit code.

    A finished phase is not repeated. With `resume` a phase goes on from its latest checkpoint.
    """
    ranks = initialize_distributed(tensor=config.parallel.tensor)
    topology = create_topology(config.parallel, ranks)
    folder = RunFolder(path)
    _log_to(folder, ranks.rank)
    with raise_on_all_ranks():
        attention.use(config.training.attention)
        if config.training.fp8:
            check_fp8()
        if ranks.rank == 0:
            prepare(folder, config)
    if resume and ranks.rank == 0 and not (path / "checkpoints").is_dir():
        log.warning("nothing to resume in %s: the run starts from its beginning", path)
    stop = StopRequest()
    hosts = ",".join(dict.fromkeys(gathered(socket.gethostname())))
    tracker = open_tracker(config, folder, topology, hosts) if ranks.rank == 0 else None
    meters = NodeMetrics(folder.path, config.tracking).start() if ranks.local_rank == 0 else None
    code, state, reason = 0, "finished", None
    try:
        for name in phases:
            if finished := folder.finished(name):
                log.info("phase %s is finished already (%d steps)", name, finished["step"])
                continue
            if ranks.rank == 0:
                keep_heartbeat(path, name)
                stage("loading")
            of_phase = config.of_phase(name)
            with swap_folder(of_phase.parallel, path, ranks) as swap:
                run_phase(of_phase, name, folder, topology, tracker, stop, resume, swap)
            gc.collect()  # engines hold themselves in circles, and the next one needs their memory
    except Stopped as stopped:
        code, state, reason = EXIT_STOPPED, "stopped", str(stopped)
    except TrainingFault as fault:
        code, state, reason = EXIT_NOT_A_NUMBER, "failed", str(fault)
    except UserError as fault:
        if tracker is not None:
            conclude(folder, tracker, "failed", str(fault))
        raise
    stop.ignore_more()
    stage("closing")
    if meters is not None:
        meters.stop()
    dist.barrier()  # what any node still wrote behind the end would be left unsent
    if ranks.rank == 0:
        assert tracker is not None
        conclude(folder, tracker, state, reason)
        if reason:
            log.error("%s: %s", state, reason)
        if code == EXIT_STOPPED and "SLURM_JOB_ID" not in os.environ:
            log.info("go on with the same command and --resume, or: %s", how_to_go_on(folder.path, ranks.world))
        log.info("%s is in %s", "everything" if code == 0 else "what there is", folder.path)
        if config.tracking.live:
            log.info("look at it with: %s", how_to_look(scrubbed(tracking_uri(folder.path, config.tracking))))
    shutdown()
    return code


def conclude(folder: RunFolder, tracker: Any, state: str, reason: str | None) -> None:
    """Says in the run folder and in the tracking how the run ended: `finished`, `stopped` or `failed`."""
    folder.write_status(**{**(folder.status() or {}), "state": state, "reason": reason})
    tracker.finish({"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[state])


def prepare(folder: RunFolder, config: RunConfig) -> None:
    """Makes the run folder, writes the configuration, and the tokenizer where the run has its own."""
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.config.is_file() and (before := load_run(folder.config)) != config:
        require_same_images(folder, before, config)
        # What the finished phases were trained with must stay known.
        number = 1 + len(list(folder.path.glob("config.before-*.yaml")))
        folder.config.rename(folder.path / f"config.before-{number}.yaml")
        changed = differences(*(flat(one.model_dump(mode="json")) for one in (before, config)))
        log.warning("settings change: %s; those so far are kept as config.before-%d.yaml", told(changed), number)
    warn_of_crop(config)
    write_run(config, folder.config)
    wanted = config.model.language.tokenizer
    if isinstance(wanted, NewTokenizer) and not folder.tokenizer.is_dir():
        aside = folder.path / ".tmp-tokenizer"
        shutil.rmtree(aside, ignore_errors=True)
        make_tokenizer(config, wanted, aside)
        aside.rename(folder.tokenizer)


def run_phase(
    config: RunConfig,
    name: str,
    folder: RunFolder,
    topology: Topology,
    tracker: Any,
    stop: StopRequest,
    resume: bool,
    swap: Path | None = None,
) -> None:
    """One phase on this rank; `swap` is for optimizer states on NVMe.

    Raises Stopped, TrainingFault, or UserError on every rank.
    """
    phase = config.phases[name]
    dp_rank, dp_size, rank = topology.dp_rank, topology.dp_size, topology.ranks.rank
    checkpoint = latest_checkpoint(folder.checkpoints(name)) if resume else None
    with raise_on_all_ranks():
        processor, tokenizer = build_processor(config.model, config.data, folder.tokenizer)
        stream = phase_stream(config, phase, processor)
        share = Share.of_rank(phase.global_batch, phase.micro_batch, dp_rank, dp_size)
        steps = phase_steps(phase, stream)
        samples = Samples(config, processor, tokenizer)
        evaluations = Evaluations(config, name, processor, tokenizer, topology, folder.path)
    validation = Validation(config, name, processor, topology)
    with raise_on_all_ranks():
        measures = Measures(config, name, validation, evaluations)
    model, started_from = starting_model(config, name, folder, topology, resumes=checkpoint is not None)
    engine = Engine(model, config, phase, topology, swap)
    if rank == 0:
        counts = ", ".join(f"{part} {trains:,} of {total:,}" for part, (total, trains) in trainable(model).items())
        log.info("phase %s: %d steps of %d rows; trains %s", name, steps, phase.global_batch, counts)
        log.info("kernels: norms by %s; steps by %s; fp8: %s", model.norms, engine.optimizer_kernel, model.fp8)
    loop = PhaseLoop(
        name,
        phase,
        steps,
        engine,
        stream,
        share,
        config.data.block,
        folder,
        stop,
        samples,
        config.training.captions_every,
        measures,
        StragglerMonitor(
            config.training.log_every,
            engine.device,
            loads_itself=config.data.workers == 0,
            counts_skipped=topology.tp_rank == 0,
        ),
        FlopCounter(config, phase),
        config.training.log_every,
        # A copy of what is swapped would undo the swapping.
        config.training.save_in_background and swap is None,
        config.training.bad_steps,
    )
    # Dropout differs between ranks; a checkpoint brings its own random states.
    torch.manual_seed(config.training.seed + 1000 * dp_rank)
    if checkpoint is not None:
        loop.resume(checkpoint, config.data.other_order)
        log.info("phase %s goes on from step %d", name, loop.step)
    if rank == 0:
        kernels = {
            "kernels.norms": model.norms,
            "kernels.optimizer": engine.optimizer_kernel,
            "kernels.fp8": model.fp8,
        }
        loop.tracker = tracker.phase(name, resumed_step=loop.step, tags=started_from | kernels)
        measures.tracker = loop.tracker
        for manifest in manifest_files(config, phase):
            tracker.dataset(manifest, "training")
    cursor = loop.position.cursor(share.lanes)
    measured = loop.run(load(stream, share.micro_batch, cursor, config.data, topology, engine.device))
    if rank == 0:
        folder.finish(name, {"step": loop.step, **measured})
        loop.tracker.log(loop.step, goodput_metrics(folder.path, name))
        loop.tracker.finish("FINISHED")
    engine.close()
    dist.barrier()  # the next phase looks for the marker on every rank


def starting_model(
    config: RunConfig, name: str, folder: RunFolder, topology: Topology, resumes: bool = False
) -> tuple[OneDiffModel, dict[str, object]]:
    """The model before the first step of phase `name`, and tags that say where it is from.

    The run's first phase starts as `model` and `init` say, any other as the phase before left it. A phase that `resumes`
    gets its weights from its own checkpoint: what `init` names may be gone by then.
    """
    if topology.tp_size > 1:
        # Megatron-core takes seconds to import.
        from onediff.parallel.sequence import check_sequence
        from onediff.parallel.tensor import check_divisible

        with raise_on_all_ranks():
            language = architecture(config.model.language, "model.language")
            check_divisible(language, topology.tp_size)
            if topology.sequence:
                check_sequence(language)
    if config.phases[name].pack is not None:
        with raise_on_all_ranks():
            check_packs(architecture(config.model.language, "model.language"), f"phases.{name}.pack")
    before = previous(config, name)
    torch.manual_seed(config.training.seed)
    if config.init is not None and begins_with(config, name, folder):
        if resumes:
            return built(config, architecture_only(config.model), name, topology, filled_later=True), {}
        with raise_on_all_ranks():
            start = Start(config, folder.tokenizer)
        model = built(config, start.model, name, topology, filled_later=False, later=start.later)
        start.fill(model, config.phases[name].lora)
        return model, {**start.tags()}
    if before is None:
        return built(config, config.model, name, topology, filled_later=False), {}
    checkpoint, finished = latest_checkpoint(folder.checkpoints(before)), folder.finished(before)
    if checkpoint is None or finished is None:
        raise UserError(f"phase {name} starts from phase {before}, which has not finished in {folder.path}")
    if step_of(checkpoint) != finished["step"]:
        raise UserError(
            f"phase {name} starts from phase {before}, which ended at step {finished['step']}, but {checkpoint} is its "
            f"newest checkpoint; delete {folder.phase(before) / 'finished.json'} and --resume to train it to its end again"
        )
    model = built(config, architecture_only(config.model), name, topology, filled_later=True)
    load_weights(model, checkpoint, lora=config.phases[name].lora)
    return model, {"started_from": checkpoint}


def begins_with(config: RunConfig, name: str, folder: RunFolder) -> bool:
    """Whether the run begins with phase `name`: there is none before it, or `--phases` left them out."""
    order = list(config.phases)
    earlier = order[: order.index(name)]
    return not any(folder.finished(phase) or latest_checkpoint(folder.checkpoints(phase)) for phase in earlier)


def built(
    config: RunConfig,
    parts: ModelConfig,
    name: str,
    topology: Topology,
    *,
    filled_later: bool,
    later: frozenset[str] = frozenset(),
) -> OneDiffModel:
    """The model `parts` in its place on this rank, cut as `config.parallel` says.

    Where its weights are `filled_later`, all of them or those of the parts in `later`, they only get their memory.
    """
    stage_three = config.parallel.zero_stage == 3
    placement = Placement(
        topology,
        zero_config=deepspeed_config(config, config.phases[name], topology.dp_size) if stage_three else None,
        filled_later=filled_later,
        later=later,
        device=f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu",
        dtype=torch.bfloat16 if stage_three and config.training.precision == "bf16" else torch.float32,
    )
    model = OneDiffModel(
        parts,
        placement=placement,
        lora=config.phases[name].lora,
        norms=config.training.norms,
        fp8=config.training.fp8,
    )
    placement.settle(model)
    return model


def previous(config: RunConfig, name: str) -> str | None:
    """The phase before `name`, or None for the first."""
    order = list(config.phases)
    return order[order.index(name) - 1] if order.index(name) else None


def how_to_go_on(run: Path, processes: int) -> str:
    """The command that takes up a stopped run on this machine."""
    several = f" --processes {processes}" if processes > 1 else ""
    return f"onediff train {shlex.quote(str(run))}{several} --resume"


def open_tracker(config: RunConfig, folder: RunFolder, topology: Topology, hosts: str) -> Any:
    """The tracker of this run, found again where the run goes on."""
    tags = {
        "host": hosts,
        "world_size": topology.ranks.world,
        "data_parallel": topology.dp_size,
        "tensor_parallel": topology.tp_size,
        "attention": attention.in_use(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    return Tracker.open(
        folder.path,
        config.tracking,
        run_name=folder.path.resolve().name,
        params=config.model_dump(mode="json"),
        tags=tags,
    )


def _log_to(folder: RunFolder, rank: int) -> None:
    """Rank 0 to the terminal and to a file, the others to their file only."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(folder.logs / f"train.rank{rank}.log")]
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stderr))
    logging.basicConfig(
        level=logging.INFO, handlers=handlers, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
