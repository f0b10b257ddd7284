"""Do the Visual Delta Module and Coupled Sample Training help? The paper's ablation on rendered scenes, cell by cell.

  make ablation-small                                                     # the demo's scenes, one seed
  python -m benchmarks.learning.ablation --steps 1250 --seeds 0,1,2       # the same, larger
  python -m benchmarks.learning.ablation --deltas joint,subtraction       # other delta modules
  python -m benchmarks.learning.ablation --table                          # print what is there

A cell is a delta module, with CST or without. All cells of a seed start from one warm-up (single scenes; the delta module
takes no part in it) and then take equally many steps of equally many rows: with `cst` the first of them are phase one
(coupled samples; only delta module and projector train), the others pairs. Every cell trains equally many parameters:

  vdm            the Visual Delta Module
  residual       the same with the difference added to its tokens (`model.delta.kind: residual`), and narrower feed-forwards
  difference     an MLP on the difference of the two images' tokens at the deepest level
  none           the Visual Delta Module shown blank features: its tokens say nothing of the images
  concatenation  no delta module: the language model reads both images, as in LLaVA, through a wider projector
  joint          self-attention over the tokens of both images, as in CLIP4IDC
  subtraction    gated differences at every level of the tower, fused, as in M3Diff

The first four run by default, the others with `--deltas`.

One process and one thread a cell, plain torch around this project's model, stream and decoder: the same cell twice on one
machine gives the same numbers. Each cell is a file; cells that are there already, made with the same settings, are kept,
so the same command goes on after an interruption. Seconds are of processor time.

The table gives means over the seeds, 95 % intervals (bootstrap over the held-out pairs), and how far each cell is from
`vdm` without CST on the same pairs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.learning.deltas import DELTAS, PEERS, built
from onediff.config.compose import load_run
from onediff.config.run import RunConfig
from onediff.config.training import PhaseConfig
from onediff.data.batch import Batch
from onediff.data.cursor import Cursor
from onediff.data.heldout import HeldOut
from onediff.data.images import open_upright
from onediff.data.loader import read_batches
from onediff.evaluation.items import ItemScores, score
from onediff.model.answer import answer
from onediff.model.build import build_processor
from onediff.model.onediff import OneDiffModel
from onediff.training.data import make_tokenizer, phase_stream
from onediff.training.optimizer import freeze, lr_multiplier, parameter_groups

WORK = Path("runs/ablation")
"""The tokenizer, and the weights after the warm-up of each seed."""
BASELINE = ("vdm", False)
"""What the other cells are compared with: the delta module, and whether with CST."""
RESAMPLES = 10_000
SHOWN = ("captions right", "changed captions right", "false alarms", "shape right", "colour right", "place right")


class Cell(NamedTuple):
    """One training: which delta module, with Coupled Sample Training or without, from which seed."""

    delta: str
    cst: bool
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.delta}-{'cst' if self.cst else 'no_cst'}-{self.seed}"


def batches(config: RunConfig, phase: PhaseConfig, processor: Any) -> Iterator[Batch]:
    """The global batches of a phase, in the order of training."""
    stream = phase_stream(config.data, phase, processor)
    cursor = Cursor.start(range(phase.global_batch))
    for batch, _ in read_batches(stream, phase.global_batch, cursor, workers=0, prefetch=1, bad_share=1.0):
        yield batch


def train(model: OneDiffModel, config: RunConfig, name: str, steps: int, processor: Any) -> float:
    """`steps` of phase `name`; returns the loss of the last."""
    phase, optimizer = config.phases[name], config.optimizer
    freeze(model, phase)
    groups = parameter_groups(model, phase, optimizer)
    stepper = torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps)
    weights = [weight for group in groups for weight in group["params"]]
    model.train()
    source = batches(config, phase, processor)
    for step in range(steps):
        for group in stepper.param_groups:
            group["lr"] = group["peak_lr"] * lr_multiplier(optimizer, step, steps)
        stepper.zero_grad()
        loss = model(next(source)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, optimizer.clip)
        stepper.step()
    return loss.item()


@torch.no_grad()
def scored(model: OneDiffModel, config: RunConfig, processor: Any, tokenizer: Any) -> ItemScores:
    """Item scores on the held-out pairs of the configuration."""
    model.eval()
    evaluation = config.evaluation
    heldout = HeldOut.open(Path(config.data.sets["pairs"].path) / evaluation.split, evaluation.limit)
    ids, captions = list(heldout.references), dict[str, str]()
    for start in range(0, len(ids), evaluation.batch_size):
        chosen = ids[start : start + evaluation.batch_size]
        rows = []
        for pair in chosen:
            images = heldout.sample(pair).images
            rows.append(processor.prompt([open_upright(images[role], 10**8) for role in ("before", "after")], None))
        made = answer(
            model,
            tokenizer,
            rows,
            torch.device("cpu"),
            ends=processor.prompter.ends,
            max_new_tokens=evaluation.max_new_tokens,
        )
        captions |= dict(zip(chosen, made, strict=True))
    return score(captions, {pair: heldout.changes[pair] for pair in ids})


def warmed_up(config: RunConfig, cell: Cell, args: argparse.Namespace, processor: Any) -> dict[str, Tensor]:
    """Weights of tower, projector and language model after the warm-up that all cells of a seed share."""
    # By what differs from the defaults: a key that a later version adds changes nothing.
    told = hashlib.sha256(config.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:12]
    kept = WORK / f"warm-up-{args.warm_up}-{told}.pt"
    if not kept.is_file():
        model = built(config.model, "vdm", cell.seed)
        train(model, config, "warm-up", args.warm_up, processor)
        state = {name: value for name, value in model.state_dict().items() if not name.startswith("delta.")}
        aside = kept.with_suffix(f".{os.getpid()}")
        torch.save(state, aside)
        aside.rename(kept)
    return dict(torch.load(kept, weights_only=True))


def measured(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Trains and scores one cell."""
    began = time.process_time()
    overrides = [f"training.seed={cell.seed}", f"data.seed={cell.seed}", *args.overrides]
    config = load_run("configs/demo.yaml", overrides)
    tokenizer_folder = WORK / "tokenizer"
    if not tokenizer_folder.is_dir():
        make_tokenizer(config, config.model.language.tokenizer, tokenizer_folder)
    processor, tokenizer = build_processor(config.model, config.data, tokenizer_folder)
    weights = warmed_up(config, cell, args, processor)
    model = built(config.model, cell.delta, cell.seed)
    model.load_state_dict(weights, strict=False)
    first = args.coupled if cell.cst else 0
    if first:
        train(model, config, "one", first, processor)
    loss = train(model, config, "two", args.steps - first, processor)
    found = scored(model, config, processor, tokenizer)
    return {
        "scores": dict(found.values),
        "right": "".join(str(int(found.is_right(pair))) for pair in found.ids),
        "loss": loss,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "seconds": round(time.process_time() - began, 1),
    }


def settings(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """What a cell's numbers depend on."""
    sizes = {"warm_up": args.warm_up, "steps": args.steps, "coupled": args.coupled}
    return {**cell._asdict(), **sizes, "overrides": list(args.overrides)}


def table(folder: Path) -> str:
    """All cells in a folder as a Markdown table, the mean of their seeds."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text())
        key = tuple(record["settings"][name] for name in ("steps", "coupled", "delta", "cst"))
        found.setdefault(key, []).append(record)
    heads = ["delta", "CST", "steps", "seeds", SHOWN[0], f"against {BASELINE[0]} without CST", *SHOWN[1:]]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for (steps, coupled, delta, cst), records in sorted(found.items(), key=_place):
        right = _right(records)
        means = [100 * float(np.mean([one["scores"].get(name, 0.0) for one in records])) for name in SHOWN]
        base = found.get((steps, coupled, *BASELINE), [])
        told = f"{coupled} of {steps}" if cst else "none"
        cells = [delta, told, str(steps), str(len(records)), f"{means[0]:.1f} ({_interval(right)})"]
        comparable = base and (delta, cst) != BASELINE and _right(base).shape == right.shape
        cells.append(
            f"{100 * (right - _right(base)).mean():+.1f} ({_interval(right - _right(base))})" if comparable else ""
        )
        lines.append("| " + " | ".join([*cells, *(f"{mean:.1f}" for mean in means[1:])]) + " |")
    return "\n".join(lines)


def _place(found: tuple[tuple[Any, ...], Any]) -> tuple[Any, ...]:
    steps, coupled, delta, cst = found[0]
    return steps, coupled, (*DELTAS, *PEERS).index(delta), cst


def _right(records: list[dict[str, Any]]) -> np.ndarray:
    """`[pairs]`: how many of the seeds told each pair right, as a share."""
    return np.mean([[int(one) for one in record["right"]] for record in records], axis=0)


def _interval(values: np.ndarray) -> str:
    """The 95 % bootstrap interval of a mean over pairs, in percent."""
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(100 * values[drawn].mean(1), [2.5, 97.5])
    return f"{low:.1f} to {high:.1f}"


def processor_name() -> str:
    """What Linux calls this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Makes the cells that are missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override configs/demo.yaml")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/learning"), metavar="DIR")
    parser.add_argument("--seeds", default="0", metavar="N,…")
    parser.add_argument("--warm-up", type=int, default=300, metavar="N", help="steps on single scenes (default: 300)")
    parser.add_argument("--steps", type=int, default=800, metavar="N", help="steps behind them (default: 800)")
    parser.add_argument("--coupled", type=int, default=80, metavar="N", help="of those, coupled ones with CST")
    parser.add_argument("--deltas", default=",".join(DELTAS), metavar="NAME,…", help="default: %(default)s")
    parser.add_argument("--only", metavar="CELL", help="one cell, such as vdm-cst-0")
    parser.add_argument("--table", action="store_true", help="only print the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    deltas = args.deltas.split(",")
    if unknown := set(deltas) - {*DELTAS, *PEERS}:
        parser.error(f"--deltas {min(unknown)}: must be one of {', '.join((*DELTAS, *PEERS))}")
    seeds = [int(seed) for seed in args.seeds.split(",")]
    cells = [Cell(delta, cst, seed) for seed in seeds for delta in deltas for cst in (False, True)]
    for cell in cells if not args.table else ():
        file, made_with = args.out / f"{cell.name}.json", settings(cell, args)
        known = json.loads(file.read_text())["settings"] if file.is_file() else None
        if known == made_with or args.only not in (None, cell.name):
            continue
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        record = {"settings": made_with, **measured(cell, args), "commit": commit, "torch": torch.__version__}
        record |= {"machine": f"{processor_name()}, {os.cpu_count()} cores, one thread"}
        aside = file.with_suffix(".tmp")
        aside.write_text(json.dumps(record, indent=1) + "\n")
        aside.rename(file)
        print(f"{cell.name}: captions right {100 * record['scores']['captions right']:.1f} %", flush=True)
    print(table(args.out))


if __name__ == "__main__":
    main()
