"""Do the Visual Delta Module and Coupled Sample Training help? The paper's ablation, cell by cell, beside rebuilt peers.

  make ablation-small                                                   # the demo's scenes, one seed: at most an hour
  make ablation                                                         # everything, three seeds: days, resumable
  python -m benchmarks.learning.ablation --steps 1250 --seeds 0,1,2     # larger
  python -m benchmarks.learning.ablation --on hard --deltas vdm,joint   # other pairs, other delta modules
  python -m benchmarks.learning.ablation --table                        # print what is there

A cell is a delta module, with or without CST. All cells of a seed start from the same warm-up (on single images, without the
delta module) and then take the same number of steps with the same number of rows. With `cst`, the first steps are on coupled
samples, from which only delta module and projector learn, and the others on pairs. Every cell trains the same number of
parameters:

  vdm            the Visual Delta Module
  residual       the same with the difference added to its tokens (`model.delta.kind: residual`), and narrower feed-forwards
  difference     an MLP on the difference of the two images' tokens at the deepest level
  none           the Visual Delta Module shown blank features: its tokens say nothing about the images
  concatenation  no delta module: the language model reads both images, as in LLaVA, through a wider projector
  joint          self-attention over the tokens of both images, as in CLIP4IDC
  subtraction    gated differences at every level of the tower, fused, as in M3Diff

The first four run by default. What they train on:

  scenes         the demo's scenes
  hard           scenes with more objects and changes, textures, and strong distractors
  both           half of the rows from scenes, half from hard ones: one generalist beside two specialists, which take as many
                 steps and so see twice as many rows of their source; scored on both
  photographs    those of `make photos`, with its frozen tower; scored on known cut-outs on new photographs

Each cell runs in one process with one thread: plain torch and AdamW around this project's model, stream and decoder. Running
a cell twice on one machine gives the same numbers. Each cell is a file, named after its settings and the digests of its data
and tower; existing cells are kept. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from torch import Tensor, nn

from benchmarks.learning.ablation_table import tables
from benchmarks.learning.deltas import DELTAS, PEERS, built, size
from onediff.config.compose import load_run
from onediff.config.run import RunConfig
from onediff.config.training import PhaseConfig
from onediff.data.batch import Batch
from onediff.data.cursor import Cursor
from onediff.data.heldout import HeldOut
from onediff.data.images import open_upright
from onediff.data.loader import read_batches
from onediff.data.manifest import read_manifest
from onediff.errors import UserError
from onediff.evaluation.items import ItemScores, score
from onediff.model.answer import answer
from onediff.model.build import build_processor
from onediff.model.onediff import OneDiffModel
from onediff.training.data import make_tokenizer, phase_stream
from onediff.training.optimizer import freeze, lr_multiplier, parameter_groups

WORK = Path("runs/ablation")
"""Tokenizers, and the weights after the warm-up of each seed."""
SOURCES = {
    "scenes": "configs/demo.yaml",
    "hard": "benchmarks/learning/hard.yaml",
    "both": "benchmarks/learning/both.yaml",
    "photographs": "benchmarks/learning/photographs.yaml",
}
"""What cells are trained on, and its configuration."""


class Cell(NamedTuple):
    """One training."""

    on: str
    """One of `SOURCES`."""
    delta: str
    """One of `DELTAS` and `PEERS`."""
    cst: bool
    """With Coupled Sample Training."""
    seed: int
    warm_up: int
    """Steps on single images."""
    steps: int
    """Steps after those."""
    coupled: int
    """How many of `steps` are Coupled Sample Training; 0 without `cst`."""
    overrides: tuple[str, ...]
    """Of the configuration."""

    @property
    def name(self) -> str:
        """Readable, but the same for other sizes and overrides."""
        return f"{self.on}-{self.delta}-{'cst' if self.cst else 'no_cst'}-{self.seed}"

    @property
    def command(self) -> str:
        """Trains this cell alone."""
        sizes = f"--warm-up {self.warm_up} --steps {self.steps} --coupled {self.coupled}"
        what = f"--on {self.on} --deltas {self.delta} --seeds {self.seed} --only {self.name}"
        return " ".join(["python -m benchmarks.learning.ablation", what, sizes, *self.overrides])

    def settings(self, data: dict[str, str]) -> dict[str, Any]:
        """What determines the scores, with the digests of the data."""
        return {**self._asdict(), "overrides": list(self.overrides), "data": data}

    def config(self) -> RunConfig:
        """Raises UserError."""
        seeds = [f"training.seed={self.seed}", f"data.seed={self.seed}"]
        return load_run(SOURCES[self.on], [*seeds, *self.overrides])


class Phases(NamedTuple):
    """The names of a configuration's phases, by what they train."""

    warm_up: str
    coupled: str
    pairs: str

    @classmethod
    def of(cls, config: RunConfig) -> Phases:
        found = {}
        for name, phase in config.phases.items():
            found["coupled" if phase.couple else "pairs" if "delta" in phase.train else "warm_up"] = name
        return cls(**found)


def held_out(config: RunConfig) -> list[Path]:
    """The held-out splits of all data sets of pairs."""
    phases = Phases.of(config)
    names = [name for name in config.phases[phases.pairs].mix if name not in config.phases[phases.warm_up].mix]
    return [Path(config.data.sets[name].path) / config.evaluation.split for name in names]


def digests(config: RunConfig) -> dict[str, str]:
    """A digest of every split that is trained or scored on, and of the tower. Raises UserError if a split is missing."""
    folders = [*(Path(one.folder) for one in config.data.sets.values()), *held_out(config)]
    found = {str(folder): _digest([shard.sha256 for shard in read_manifest(folder).shards]) for folder in folders}
    if (tower := config.model.vision.name) is not None:
        weights = Path(tower) / "model.safetensors"
        if not weights.is_file():
            raise UserError(f"{weights}: no such file; make targets ablation-small and ablation make it")
        found[tower] = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    return found


def batches(config: RunConfig, phase: PhaseConfig, processor: Any) -> Iterator[Batch]:
    """The global batches of a phase, in the order of training, with features in the precision of the cells."""
    stream = phase_stream(config.data, phase, processor)
    cursor = Cursor.start(range(phase.global_batch))
    for batch, _ in read_batches(stream, phase.global_batch, cursor, workers=0, prefetch=1, bad_share=1.0):
        yield batch if batch.features is None else replace(batch, features=batch.features.float())


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
def scored(model: OneDiffModel, config: RunConfig, folder: Path, processor: Any, tokenizer: Any) -> ItemScores:
    """Item scores on the held-out split in `folder`."""
    model.eval()
    evaluation = config.evaluation
    pairs = HeldOut.open(folder, evaluation.limit)
    ids, captions = list(pairs.references), dict[str, str]()
    for start in range(0, len(ids), evaluation.batch_size):
        chosen = ids[start : start + evaluation.batch_size]
        rows = []
        for pair in chosen:
            images = pairs.sample(pair).images
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
    return score(captions, {pair: pairs.changes[pair] for pair in ids})


def prepared(config: RunConfig, data: dict[str, str]) -> tuple[Any, Any]:
    """The processor and the tokenizer that all cells on the same data share."""
    folder = WORK / f"tokenizer-{_digest([data, config.model.language.model_dump(mode='json')])}"
    if not folder.is_dir():
        aside = folder.with_name(f".{folder.name}.{os.getpid()}")
        make_tokenizer(config, config.model.language.tokenizer, aside)
        if folder.is_dir():  # another process was faster
            shutil.rmtree(aside)
        else:
            aside.rename(folder)
    return build_processor(config.model, config.data, folder)


def warmed_up(config: RunConfig, cell: Cell, data: dict[str, str], processor: Any) -> dict[str, Tensor]:
    """Weights of tower, projector and language model after the warm-up that all cells of a seed share."""
    shared = [cell.on, cell.seed, cell.warm_up, cell.overrides, data]
    kept = WORK / f"{cell.on}-warm-up-{cell.seed}-{_digest(shared)}.pt"
    if not kept.is_file():
        model = built(config.model, "vdm", cell.seed)
        train(model, config, Phases.of(config).warm_up, cell.warm_up, processor)
        state = {name: value for name, value in model.state_dict().items() if not name.startswith("delta.")}
        aside = kept.with_suffix(f".{os.getpid()}")
        torch.save(state, aside)
        aside.rename(kept)
    return dict(torch.load(kept, weights_only=True))


def warm_up(cell: Cell, out: Path) -> None:
    """What cells of a seed share, unless this cell is there."""
    config = cell.config()
    data = digests(config)
    if not file_of(cell, data, out).is_file():
        warmed_up(config, cell, data, prepared(config, data)[0])


def measured(cell: Cell, config: RunConfig, data: dict[str, str]) -> dict[str, Any]:
    """Trains and scores one cell."""
    processor, tokenizer = prepared(config, data)
    weights = warmed_up(config, cell, data, processor)
    began, phases = time.process_time(), Phases.of(config)
    model = built(config.model, cell.delta, cell.seed)
    unknown = model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, unknown
    if cell.coupled:
        train(model, config, phases.coupled, cell.coupled, processor)
    loss = train(model, config, phases.pairs, cell.steps - cell.coupled, processor)
    found = {}
    for folder in held_out(config):
        scores = scored(model, config, folder, processor, tokenizer)
        right = "".join(str(int(scores.is_right(pair))) for pair in scores.ids)
        found[str(folder)] = {"scores": dict(scores.values), "right": right}
    seconds = round(time.process_time() - began, 1)
    return {"held_out": found, "loss": loss, "parameters": size(model), "seconds": seconds}


def file_of(cell: Cell, data: dict[str, str], out: Path) -> Path:
    """Where the scores of a cell are kept."""
    return out / f"{cell.name}-{_digest(cell.settings(data))}.json"


def make(cell: Cell, out: Path) -> None:
    """Trains a cell and writes its file, unless it is there."""
    config = cell.config()
    data = digests(config)
    file = file_of(cell, data, out)
    if file.is_file():
        return
    record = {"settings": cell.settings(data), **measured(cell, config, data), "command": cell.command}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    record |= {"commit": commit, "torch": torch.__version__}
    record |= {"machine": f"{processor_name()}, {os.cpu_count()} cores, one thread"}
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps(record, indent=1) + "\n")
    aside.rename(file)
    right = {folder: 100 * one["scores"]["captions right"] for folder, one in record["held_out"].items()}
    print(
        f"{cell.name}: " + ", ".join(f"{share:.1f} % right of {folder}" for folder, share in right.items()), flush=True
    )


def make_all(cells: Sequence[Cell], out: Path, processes: int) -> None:
    """Makes `cells`, `processes` of them at a time. Raises UserError."""
    torch.set_num_threads(1)
    if processes == 1:
        for cell in cells:
            make(cell, out)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, torch.set_num_threads, (1,)) as pool:
        # The warm-up first: otherwise the first cells would all train it.
        firsts = {cell.seed: cell for cell in reversed(cells)}.values()
        for each, some in ((warm_up, firsts), (make, cells)):
            list(pool.map(each, some, repeat(out)))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def processor_name() -> str:
    """What Linux calls this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Makes the cells that are missing, then prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the configuration's")
    parser.add_argument("--on", choices=SOURCES, default="scenes", help="what to train on (default: %(default)s)")
    parser.add_argument("--deltas", default=",".join(DELTAS), metavar="NAME,…", help="default: %(default)s")
    parser.add_argument("--seeds", default="0", metavar="N,…")
    parser.add_argument("--warm-up", type=int, default=300, metavar="N", help="steps on single images (default: 300)")
    parser.add_argument("--steps", type=int, default=800, metavar="N", help="steps after them (default: 800)")
    parser.add_argument("--coupled", type=int, default=80, metavar="N", help="of those, coupled ones with CST")
    parser.add_argument("--only", metavar="CELL", help="one of these cells, such as scenes-vdm-cst-0")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="cells that train side by side (default: 1)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/learning"), metavar="DIR")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    args = parser.parse_args()
    deltas, seeds = args.deltas.split(","), [int(seed) for seed in args.seeds.split(",")]
    if unknown := set(deltas) - {*DELTAS, *PEERS}:
        parser.error(f"--deltas {min(unknown)}: must be one of {', '.join((*DELTAS, *PEERS))}")
    cells = [
        Cell(args.on, delta, cst, seed, args.warm_up, args.steps, args.coupled if cst else 0, tuple(args.overrides))
        for seed in seeds
        for delta in deltas
        for cst in (False, True)
    ]
    if args.only is not None and args.only not in (names := [cell.name for cell in cells]):
        parser.error(f"--only {args.only}: must be one of {', '.join(names)}")
    for folder in (args.out, WORK):
        folder.mkdir(parents=True, exist_ok=True)
    if not args.table:
        try:
            make_all([cell for cell in cells if args.only in (None, cell.name)], args.out, args.processes)
        except UserError as error:
            parser.exit(2, f"error: {error}\n")
    print(tables(args.out))


if __name__ == "__main__":
    main()
