"""Evaluation inside the training loop: all ranks caption with the current weights, scored as by `onediff evaluate`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from onediff.config.evaluation import EvaluationConfig
from onediff.config.run import RunConfig
from onediff.data.heldout import HeldOut, first_with_pairs
from onediff.data.rows import Processor, TokenRow
from onediff.errors import UserError
from onediff.evaluation.answers import fingerprint, read_answers
from onediff.evaluation.generate import CaptioningJob, caption_split
from onediff.evaluation.run import Evaluation, decoding, instruction, scored
from onediff.model.answer import answer
from onediff.parallel.agreement import gathered, raise_on_all_ranks
from onediff.parallel.topology import Topology
from onediff.runs.section import section
from onediff.training.engine import Engine
from onediff.training.stop import no_check

log = logging.getLogger(__name__)


class Evaluations:
    """Scores of the held-out split of a phase's first data set with pairs, every `evaluate_every` steps.

    Costs the captions of the split (bounded by `evaluation.limit`) and the scores, which rank 0 computes while the others
    wait.
    """

    def __init__(
        self, config: RunConfig, phase: str, processor: Processor, tokenizer: Any, topology: Topology, run: Path
    ) -> None:
        """Raises UserError if evaluation is enabled and no data set of the phase has pairs."""
        self.every = config.phases[phase].evaluate_every
        self.config: EvaluationConfig = config.evaluation
        self.processor, self.tokenizer, self.topology = processor, tokenizer, topology
        self.phase, self.run = phase, run
        self.check: Callable[[torch.device], None] = no_check
        self.in_step = config.parallel.zero_stage == 3
        if self.every is not None:
            sets = {Path(config.data.sets[name].path): config.data.sets[name] for name in config.phases[phase].mix}
            found = first_with_pairs(sets, self.config.split)
            if found is None:
                names = ", ".join(config.phases[phase].mix)
                raise UserError(f"evaluate_every: no data set of {names} has pairs in its split {self.config.split!r}")
            self.data, self.task = found, sets[found].task
            self.heldout = HeldOut.open(self.data / self.config.split, self.config.limit)

    def due(self, step: int) -> bool:
        """Whether this step is followed by an evaluation."""
        return self.every is not None and step % self.every == 0

    def folder(self, step: int) -> Path:
        """The folder of this step's captions and scores."""
        return self.run / "evaluation" / f"{self.data.name}-{self.config.split}-{self.phase}-{step}"

    def missed(self, step: int) -> bool:
        """Whether a stop request prevented this step's evaluation. One that failed would fail again and is not missed."""
        return step > 0 and not self.folder(step).exists()

    def forget(self, step: int) -> None:
        """Removes a partial evaluation, so that it counts as missed."""
        if self.topology.ranks.rank == 0:
            shutil.rmtree(self.folder(step), ignore_errors=True)

    @section("evaluation")
    def scores(self, engine: Engine, step: int) -> tuple[Path, dict[str, float]] | None:
        """Folder of captions and scores, and the scores, on rank 0; None on the others. Collective.

        All ranks call `check` before each batch; what it raises must be raised on every rank.
        """
        folder = self.folder(step)
        with raise_on_all_ranks():
            if self.topology.ranks.rank == 0:
                # A resumed run repeats the step, with different weights if the arithmetic is not deterministic.
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
        plan = Evaluation(self.run, self.data, self.config, folder, self.task)
        usual = plan.usual(self.processor.prompter.config)
        job = CaptioningJob(
            heldout=self.heldout,
            processor=self.processor,
            folder=folder,
            by=fingerprint(phase=self.phase, step=step),
            batch_size=self.config.batch_size,
            answer=lambda rows: self._answer(engine, rows),
            instruction=instruction(self.config),
            usual=usual,
            seed=self.config.seed,
            in_step=self.in_step,
            check=lambda: self.check(engine.device),
        )
        # Sampling must not change the random numbers of training.
        devices = [engine.device] if engine.device.type == "cuda" else []
        engine.model.eval()
        try:
            with torch.random.fork_rng(devices=devices):
                caption_split(job, self.topology)
        finally:
            engine.model.train()
        graphs = any(gathered(engine.model.cuda_graphs.used))
        if self.topology.ranks.rank != 0:
            return None
        answers = read_answers(folder, job.label, job.by)
        asked = instruction(self.config) or usual
        found = scored(plan, self.heldout, answers, self.processor.image, asked, cuda_graphs=graphs)["scores"]
        scores = {name: value for name, value in found.items() if value is not None}
        lead = next(iter(scores))
        log.info("phase %s step %d: %s ×100 %.1f of %d pairs", self.phase, step, lead, 100 * scores[lead], len(answers))
        return folder, scores

    def _answer(self, engine: Engine, rows: list[TokenRow]) -> list[str]:
        options: dict[str, Any] = decoding(self.config) | {"cuda_graph": self.config.cuda_graphs}
        options["ends"] = self.processor.prompter.ends
        if self.in_step:
            options["synced"] = lambda going: any_rank(going, engine.device)
        return answer(engine.model, self.tokenizer, rows, engine.device, **options)


def any_rank(going: bool, device: torch.device) -> bool:
    """Whether any rank has work left."""
    flag = torch.tensor([int(going)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
