"""The model that a phase starts from: a new one, another run or export, or the previous phase."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from onediff.config.model import ModelConfig
from onediff.config.parallel import ParallelConfig
from onediff.config.run import RunConfig
from onediff.config.training import PhaseConfig
from onediff.errors import UserError, under
from onediff.model.architecture import architecture, described
from onediff.model.build import architecture_only
from onediff.model.families import check_divisible, check_packs, check_sequence, check_shares
from onediff.model.lean import transformers
from onediff.model.lora import add_adapters
from onediff.model.onediff import OneDiffModel
from onediff.model.vision import VisionTower
from onediff.parallel.agreement import raise_on_all_ranks
from onediff.parallel.placement import Placement
from onediff.parallel.topology import Topology
from onediff.runs.folder import RunFolder
from onediff.training.checkpoint import latest_checkpoint, load_weights
from onediff.training.checkpoint.folder import step_of
from onediff.training.init import Start
from onediff.training.stop import StopRequest, during_reads
from onediff.zero import node_copy
from onediff.zero.settings import check_zero, deepspeed_config


def starting_model(
    config: RunConfig,
    name: str,
    folder: RunFolder,
    topology: Topology,
    resumes: bool = False,
    stop: StopRequest | None = None,
) -> tuple[OneDiffModel, dict[str, object]]:
    """The model before the first step of phase `name`, and tags that record its origin.

    The run's first phase starts from `model` and `init`, any other from the previous phase. A phase that `resumes` gets
    its weights from its own checkpoint, since the origins in `init` may be gone by then.
    """
    before = previous(list(config.phases), name)
    torch.manual_seed(config.training.seed)
    if config.init is not None and begins_with(list(config.phases), name, folder):
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
            f"newest checkpoint; delete {folder.phase(before) / 'finished.json'} and --resume to train it to the end again"
        )
    model = built(config, architecture_only(config.model), name, topology, filled_later=True)
    with during_reads(stop) as heed:
        load_weights(model, checkpoint, lora=config.phases[name].lora, heed=heed)
    return model, {"started_from": checkpoint}


def check_model(model: ModelConfig, phase: PhaseConfig, name: str, parallel: ParallelConfig) -> None:
    """Raises UserError if the model cannot be split, packed or trained as the phase `name` requires."""
    language = architecture(model.language, "model.language")
    if parallel.tensor > 1:
        check_divisible(language, parallel.tensor)
        if parallel.sequence:
            check_sequence(language)
    if parallel.context > 1:
        check_shares(language, parallel.tensor, parallel.context)
    if phase.pack is not None:
        check_packs(language, f"phases.{name}.pack")
    if parallel.deepspeed:
        own = f"phases.{name}." if phase.parallel.deepspeed else ""
        check_zero(parallel.deepspeed, f"{own}parallel.deepspeed")
    check_trained_layers(model, phase, name)


def check_trained_layers(model: ModelConfig, phase: PhaseConfig, name: str) -> None:
    """Raises UserError if the phase trains layers that the model lacks.

    Builds the affected part on the meta device, which takes no memory and about a second for the largest models.
    """
    bare = architecture_only(model)
    with torch.device("meta"):
        if phase.vision_last is not None:
            tower = VisionTower(bare.vision)
            with under(f"phases.{name}"):
                tower.train_last(phase.vision_last)
        if phase.lora is not None:
            language = described(transformers.AutoModelForCausalLM, architecture(bare.language, "model.language"))
            with under(f"phases.{name}"):
                add_adapters(language, phase.lora)


def begins_with(phases: Sequence[str], name: str, folder: RunFolder) -> bool:
    """Whether the phase `name` is the first that this run trains; `--phases` may have left out earlier ones."""
    earlier = phases[: phases.index(name)]
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
    """The model `parts` as this rank holds it, sharded according to `config.parallel`.

    Weights that are filled later (all with `filled_later`, else those of the parts in `later`) are only allocated.
    """
    node_copy.start(config.parallel, topology)
    stage_three = config.parallel.zero_stage == 3
    placement = Placement(
        topology,
        zero_config=deepspeed_config(config, config.phases[name], topology.dp_size) if stage_three else None,
        filled_later=filled_later,
        later=later,
        device=f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu",
        dtype=torch.bfloat16 if stage_three and config.training.precision == "bf16" else torch.float32,
    )
    model = OneDiffModel(parts, placement=placement, lora=config.phases[name].lora, norms=config.training.norms)
    placement.settle(model)
    return model


def previous(order: Sequence[str], name: str) -> str | None:
    """The phase before `name`, or None if it is the first."""
    return order[order.index(name) - 1] if order.index(name) else None
