"""One evaluation: all ranks caption, then rank 0 computes scores, baselines and a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from onediff.config.data import PromptConfig
from onediff.config.evaluation import EvaluationConfig
from onediff.config.model import ImageConfig
from onediff.config.parallel import ParallelConfig
from onediff.data.heldout import HeldOut
from onediff.data.manifest import read_manifest
from onediff.errors import UserError
from onediff.evaluation.answers import Answer, fingerprint, read_answers
from onediff.evaluation.baselines import blind_answers
from onediff.evaluation.captioner import Captioner
from onediff.evaluation.confidence import Knowledge
from onediff.evaluation.files import References, write_aside
from onediff.evaluation.generate import CaptioningJob, caption_split
from onediff.evaluation.metrics import chosen
from onediff.evaluation.protocols import protocol
from onediff.evaluation.report import shard_images, with_attention, write_report
from onediff.evaluation.scoring import Scores, score_all
from onediff.model.saved import weights_digest
from onediff.parallel.agreement import from_rank_zero, gathered, raise_on_all_ranks
from onediff.parallel.ranks import initialize_distributed, shutdown
from onediff.parallel.topology import create_topology
from onediff.runs.section import stage


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate, on which data, and where the results go."""

    model: Path
    """Folder of a saved model."""
    data: Path
    """Data set; the split is a folder in it."""
    config: EvaluationConfig
    """Decoding, split, protocol."""
    out: Path
    """Folder of captions and scores."""
    task: str | None = None
    """The data set's task in the model's training, if it is known."""

    def usual(self, prompt: PromptConfig) -> str:
        """The instruction for pairs without one of their own, for a model that was trained with `prompt`: that of the data
        set's task, else that of the protocol's task, else the instruction for pairs."""
        known = [task for task in (self.task, protocol(self.config.protocol).task) if task in prompt.instructions]
        return prompt.wordings((*known, "pair")[0])[0]


def evaluate(planned: Callable[[], Evaluation], with_baselines: bool) -> tuple[Evaluation, dict[str, Any]] | None:
    """Captions and scores a split with all ranks of this job; rank 0 returns the plan and the results.

    Only rank 0 calls `planned`, before it joins the others: it may export the run's newest weights, which takes time, and
    reading a checkpoint inside a process group needs all its ranks. With baselines, the same model also answers each
    before image shown twice, and two systems that see no image are scored. Raises UserError on every rank.
    """
    made: Evaluation | None = None
    fault: Exception | None = None

    def plan_alone() -> None:
        nonlocal made, fault
        try:
            made = planned()
            made.out.mkdir(parents=True, exist_ok=True)
        except (UserError, OSError) as error:
            fault = error

    ranks = initialize_distributed(first=plan_alone)
    with raise_on_all_ranks():
        if fault is not None:
            raise fault
    plan: Evaluation = from_rank_zero(made)  # type: ignore[assignment]
    stage("loading")
    config = plan.config
    topology = create_topology(ParallelConfig(tensor=config.tensor), ranks)
    with raise_on_all_ranks():
        heldout = HeldOut.open(plan.data / config.split, config.limit)
        captioner = Captioner(plan.model, precision=config.precision, topology=topology)
        digest = weights_digest(plan.model) if ranks.rank == 0 else ""
    digest = str(from_rank_zero(digest))
    usual = plan.usual(captioner.processor.prompter.config)
    job = CaptioningJob(
        heldout=heldout,
        processor=captioner.processor,
        folder=plan.out,
        by=asked_by(config, plan.data, model=digest, precision=str(captioner.dtype), usual=usual),
        batch_size=config.batch_size,
        answer=partial(captioner.answer, **decoding(config), cuda_graph=config.cuda_graphs),
        attention=captioner.attention_maps if config.attention_maps else None,
        instruction=instruction(config),
        usual=usual,
        seed=config.seed,
    )
    stage("evaluation")
    caption_split(job, topology)
    blind = replace(job, see=lambda before, after: [before, before], label="before-twice", attention=None)
    if with_baselines:
        caption_split(blind, topology)
    graphs = any(gathered(captioner.model.cuda_graphs.used))
    results = None
    if ranks.rank == 0:
        before_twice = read_answers(plan.out, blind.label, blind.by) if with_baselines else None
        print(f"captions to score: {len(heldout.references):,} …", file=sys.stderr, flush=True)
        answers = read_answers(plan.out, job.label, job.by)
        results = scored(
            plan, heldout, answers, job.processor.image, instruction(config) or usual, before_twice, graphs
        )
    shutdown()
    return (plan, results) if results is not None else None


def decoding(config: EvaluationConfig) -> dict[str, Any]:
    """The generation options that captions depend on, as `Captioner.answer` takes them."""
    options: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "num_beams": config.num_beams}
    if config.num_beams > 1:
        options["length_penalty"] = config.length_penalty
    if config.do_sample:
        options |= {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
    return options


def instruction(config: EvaluationConfig) -> str | None:
    """The instruction for every pair, or None for each pair's own. Raises UserError if the protocol has none."""
    if config.instruction != "protocol":
        return config.instruction
    asked = protocol(config.protocol).instruction
    if asked is None:
        raise UserError(
            f"evaluation.instruction: protocol {config.protocol} prescribes none; write one, or leave the key out"
        )
    return asked


def asked_by(config: EvaluationConfig, data: Path, **model: object) -> str:
    """Fingerprint of everything that an answer depends on, which does not include the number of ranks."""
    shards = [(shard.name, shard.bytes, shard.sha256) for shard in read_manifest(data / config.split).shards]
    return fingerprint(
        **model,
        shards=shards,
        decoding=decoding(config),
        instruction=instruction(config),
        seed=config.seed if config.do_sample else 0,
    )


def scored(
    plan: Evaluation,
    heldout: HeldOut,
    answers: dict[str, Answer],
    image: ImageConfig,
    asked: str,
    before_twice: dict[str, Answer] | None = None,
    cuda_graphs: bool = False,
) -> dict[str, Any]:
    """Scores answers; writes `predictions.jsonl`, `references.jsonl`, `scores.json` and `report.html` into `plan.out`.

    `asked` is the instruction of pairs without one of their own. If the answers to the before image shown twice are given,
    baselines are scored as well. `cuda_graphs` tells whether they were used.
    """
    config, references, types = plan.config, heldout.references, heldout.change_types
    predictions = captions_in_order(answers, references)
    lines = (json.dumps({"id": p, "caption": c}, ensure_ascii=False) + "\n" for p, c in predictions.items())
    write_aside(plan.out / "predictions.jsonl", "".join(lines))
    heldout.write_references(plan.out / "references.jsonl")
    systems = {"model": predictions}
    results: dict[str, Any] = {}
    if before_twice is not None:
        blind = blind_answers(references, config.protocol, config.seed)
        systems["best constant"] = blind.constant
        systems["before twice"] = captions_in_order(before_twice, references)
        systems["shuffled"] = blind.shuffled
        results["constant"] = blind.caption
    images = shard_images(plan.data / config.split, references)
    all_scores = score_all(
        References(references, types, heldout.changes),
        list(systems.values()),
        protocol(config.protocol),
        chosen(config.metrics),
        bootstrap=config.bootstrap,
        seed=config.seed,
        images=images,
    )
    found, baselines = all_scores[0], dict(zip(list(systems)[1:], all_scores[1:], strict=True))
    leakage = read_manifest(plan.data / config.split).extra.get("leakage", {})
    found = replace(found, notes=(*found.notes, *caveats(config, len(references), leakage)))
    generation = {"decoding": decoding(config), "instruction": asked, "limit": config.limit, "cuda_graphs": cuda_graphs}
    results = {**found.as_json(), **results, "generation": generation, "unreadable": heldout.unreadable}
    results["leakage"] = leakage
    results["baselines"] = {name: dict(scores.scores) for name, scores in baselines.items()}
    results["table"] = table({"model": found, **baselines})
    write_aside(plan.out / "scores.json", json.dumps(results, indent=1, ensure_ascii=False))
    attention = {pair: answer.attention for pair, answer in answers.items() if answer.attention is not None}
    shown = with_attention(images, attention, image)
    knowledge = Knowledge.read(plan.model)
    write_report(
        *(plan.out / "report.html", found, references, predictions, types),
        beside=baselines,
        images=shown,
        reliability=None if knowledge is None else knowledge.as_json(),
    )
    return results


def caveats(config: EvaluationConfig, pairs: int, leakage: Mapping[str, Mapping[str, int]]) -> list[str]:
    """One line for each reason why these scores cannot be compared with others.

    `leakage` is the manifest's: for each other split, how many pairs share both images with it, or one.
    """
    rules, made = protocol(config.protocol), list[str]()
    if pairs == config.limit:
        made.append(f"only the first {pairs} pairs were scored (evaluation.limit)")
    if rules.published and config.split != rules.split:
        made.append(f"published scores are for the split {rules.split}, these are for {config.split}")
    if (shared := leakage.get("train")) and any(shared.values()):
        made.append(
            f"{shared['same_images']} pairs of the split are also in train, and {shared['one_image']} share one image "
            "with it"
        )
    return made


def captions_in_order(answers: dict[str, Answer], references: dict[str, list[str]]) -> dict[str, str]:
    """The captions in the order of the pairs, without those of pairs that were not selected."""
    return {pair: answers[pair].caption for pair in references}


def table(systems: dict[str, Scores]) -> str:
    """Scores by metric (rows, times 100 as papers print them) and system (columns), as text.

    The first system is followed by its 95 % intervals if they were computed.
    """
    first, *_ = systems.values()
    columns = {
        name: {metric: hundredfold(value) for metric, value in one.scores.items()} for name, one in systems.items()
    }
    if first.intervals:
        name, *others = columns
        ranges = {metric: " – ".join(map(hundredfold, ends)) for metric, ends in first.intervals.items()}
        columns = {name: columns[name], "95 % interval": ranges} | {other: columns[other] for other in others}
    width = max(len(name) for name in (*first.scores, "×100"))
    lines = [f"{'×100':<{width}}" + "".join(f"{name:>16}" for name in columns)]
    for metric in first.scores:
        lines.append(f"{metric:<{width}}" + "".join(f"{column.get(metric, '-'):>16}" for column in columns.values()))
    return "\n".join(lines)


def hundredfold(value: float | None) -> str:
    """A score as papers print it, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"
