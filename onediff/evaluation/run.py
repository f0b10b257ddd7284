"""One evaluation: captions by all ranks of this job, then scores, floors and a table by rank 0."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from onediff.data.heldout import HeldOut
from onediff.evaluation.captioner import Captioner
from onediff.evaluation.config import EvaluationConfig
from onediff.evaluation.floors import blind_answers
from onediff.evaluation.generate import caption_split, read_answers
from onediff.evaluation.metrics import Scores, score_all
from onediff.evaluation.protocols import protocol
from onediff.evaluation.report import shard_pictures, write_report
from onediff.parallel.agreement import together
from onediff.parallel.ranks import initialize_distributed, shutdown


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, on what, and where the results go."""

    model: Path
    """Folder of a saved model."""
    data: Path
    """Data set; the split is a folder below it."""
    config: EvaluationConfig
    """Decoding, split, protocol."""
    out: Path
    """Folder of captions and scores."""


def evaluate(plan: Evaluation, with_floors: bool) -> dict[str, Any] | None:
    """Captions and scores a split with all ranks of this job; rank 0 returns the results, which `scores.json` holds too.

    With floors, the same model is also shown each before image twice, and two systems that see no picture are scored.
    Raises UserError on every rank alike.
    """
    ranks = initialize_distributed()
    config = plan.config
    with together():
        plan.out.mkdir(parents=True, exist_ok=True)
        heldout = HeldOut.open(plan.data / config.split, config.limit)
        captioner = Captioner(plan.model)
    decoding: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "num_beams": config.num_beams}
    if config.num_beams > 1:
        decoding["length_penalty"] = config.length_penalty
    if config.do_sample:
        decoding |= {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
    share: dict[str, Any] = {"rank": ranks.rank, "ranks": ranks.world, "batch_size": config.batch_size}
    caption_split(captioner, heldout, plan.out, **share, **decoding)
    if with_floors:
        blind: dict[str, Any] = {"see": lambda before, after: [before, before], "label": "before-twice"}
        caption_split(captioner, heldout, plan.out, **share, **decoding, **blind)
    dist.barrier()
    results = rank_zero_scores(plan, heldout, with_floors) if ranks.rank == 0 else None
    shutdown()
    return results


def rank_zero_scores(plan: Evaluation, heldout: HeldOut, with_floors: bool) -> dict[str, Any]:
    """Scores the answers of all ranks; writes `predictions.jsonl`, `references.jsonl`, `scores.json`, `report.html`."""
    config, references, types = plan.config, heldout.references, heldout.change_types
    predictions = ordered(read_answers(plan.out, "captions"), references)
    with (plan.out / "predictions.jsonl").open("w", encoding="utf-8") as out:
        for pair, caption in predictions.items():
            out.write(json.dumps({"id": pair, "caption": caption}, ensure_ascii=False) + "\n")
    heldout.write_references(plan.out / "references.jsonl")
    systems = {"model": predictions}
    results: dict[str, Any] = {}
    if with_floors:
        blind = blind_answers(references, config.protocol, config.seed)
        systems["best constant"] = blind.constant
        systems["before twice"] = ordered(read_answers(plan.out, "before-twice"), references)
        systems["shuffled"] = blind.shuffled
        results["constant"] = blind.caption
    scored = score_all(
        references,
        list(systems.values()),
        protocol(config.protocol),
        types,
        bootstrap=config.bootstrap,
        seed=config.seed,
    )
    found, floors = scored[0], dict(zip(list(systems)[1:], scored[1:], strict=True))
    results = {**found.as_json(), **results, "unreadable": heldout.unreadable}
    results["floors"] = {name: dict(scores.scores) for name, scores in floors.items()}
    results["table"] = table({"model": found, **floors})
    (plan.out / "scores.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
    pictures = shard_pictures(plan.data / config.split, references)
    write_report(plan.out / "report.html", found, references, predictions, types, beside=floors, pictures=pictures)
    return results


def ordered(answers: dict[str, str], references: dict[str, list[str]]) -> dict[str, str]:
    """The answers in the order of the pairs, without those to pairs of another selection."""
    return {pair: answers[pair] for pair in references}


def table(systems: dict[str, Scores]) -> str:
    """Scores by metric (rows, times 100 as papers print them) and system (columns), as text."""
    metrics = list(next(iter(systems.values())).scores)
    width = max(len(name) for name in metrics)
    lines = [" " * width + "".join(f"{name:>15}" for name in systems)]
    for metric in metrics:
        values = (scores.scores.get(metric) for scores in systems.values())
        lines.append(
            f"{metric:<{width}}" + "".join("              -" if v is None else f"{100 * v:>15.1f}" for v in values)
        )
    return "\n".join(lines)
