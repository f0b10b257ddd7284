"""The model card of an export: training data, scores, examples and limits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onediff.config.data import DataConfig
from onediff.config.model import ModelConfig
from onediff.config.run import RunConfig
from onediff.config.training import PhaseConfig
from onediff.data.manifest import FILE, read_manifest
from onediff.runs.folder import RunFolder

EXAMPLES = 4
WARNS = "OneDiff's own commands warn about such images and give each caption a confidence; transformers alone does not."
SHOWN = ("CIDEr", "BLEU-4", "METEOR", "ROUGE-L", "change type")
WITH_TRANSFORMERS = """\
```python
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
inputs = processor(images=["before.jpg", "after.jpg"])
print(processor.captions(model.generate(**inputs, max_new_tokens=64), inputs)[0])
```

"""
"""How to use an export that has its code, as `onediff.hub.huggingface` decides."""
CARD = """\
---
library_name: {library}
pipeline_tag: image-text-to-text
tags: [onediff, image-difference-captioning]
---

# {name}

Describes the differences between two images ([OneDiff](https://arxiv.org/abs/2407.05645)). Weights of run
`{name}`, phase `{phase}`, step {step}.

{usage}With [OneDiff](https://arxiv.org/abs/2407.05645) installed: `onediff caption before.jpg after.jpg --model FOLDER`.

## Parts

{parts}

## Training

{phases}

## Data

{data}

## Scores

{scores}

{examples}## Limits

The model was trained only on the data above: for other kinds of images it writes fluent captions that may be wrong.
{warning} It does not mention changes of kinds that its data does not describe, and it may describe a change when nothing
has changed.
"""


def write_card(folder: Path, run: RunFolder, config: RunConfig, trained: dict[str, Any]) -> None:
    """Writes `README.md` and its example images into an export of `run`."""
    with_transformers = (folder / "config.json").is_file()
    card = CARD.format(
        **{"name": config.name, "phase": trained["phase"], "step": trained["step"]},
        library="transformers" if with_transformers else "onediff",
        usage=WITH_TRANSFORMERS if with_transformers else "",
        parts=table(("part", "from", "licence"), parts(config.model)),
        phases=table(
            ("phase", "steps", "global batch", "learning rate", "trains", "data"),
            phases(config.phases, config.optimizer.lr),
        ),
        data=table(("data set", "samples", "source", "licence"), data(config.data)),
        scores=scores(run, trained),
        examples=examples(folder, run, trained),
        warning=WARNS if (folder / "confidence.npz").is_file() else "There is no warning for such images.",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in lines)


def parts(model: ModelConfig) -> list[tuple[str, str, str]]:
    """The initial weights of each part; public weights keep their own licence."""
    named = {"vision": model.vision.name, "delta": model.delta.bert, "language": model.language.name}
    return [
        (part, f"`{name}`", f"that of `{name}`") if name else (part, "random weights", "-")
        for part, name in {**named, "projector": None}.items()
    ]


def phases(trained: Mapping[str, PhaseConfig], lr: float) -> list[tuple[Any, ...]]:
    """One row per phase; `lr` applies to phases without their own."""
    return [
        (
            *(name, phase.steps or f"{phase.epochs} epochs", phase.global_batch, phase.lr or lr),
            *(", ".join(phase.train), ", ".join(f"{name} × {weight:g}" for name, weight in phase.mix.items())),
        )
        for name, phase in trained.items()
    ]


def data(read: DataConfig) -> list[tuple[Any, ...]]:
    """One row per data set, from its manifest if available."""
    rows: list[tuple[Any, ...]] = []
    for name, one in read.sets.items():
        if (Path(one.folder) / FILE).is_file():
            manifest = read_manifest(Path(one.folder))
            rows.append((name, manifest.samples, manifest.source or "-", manifest.licence or "not stated"))
        else:
            rows.append((name, "-", f"`{Path(one.folder).name}`", "not stated"))
    return rows


def scores(run: RunFolder, trained: dict[str, Any]) -> str:
    """A table for each evaluation of these weights, in percent with 95 % intervals."""
    made = []
    for file in sorted(run.path.glob(f"evaluation/*-{trained['phase']}-{trained['step']}/scores.json")):
        known = json.loads(file.read_text())
        intervals = known.get("intervals") or {}
        rows = []
        for name in (name for name in SHOWN if known["scores"].get(name) is not None):
            low, high = intervals.get(name, (None, None))
            between = "-" if low is None else f"{100 * low:.1f} to {100 * high:.1f}"
            rows.append((name, f"{100 * known['scores'][name]:.1f}", between))
        split = file.parent.name.removesuffix(f"-{trained['phase']}-{trained['step']}")
        head = f"`{split}`, {known['pairs']} pairs, protocol `{known['protocol']}`:"
        made.append(f"{head}\n\n{table(('metric', 'score', '95 % interval'), rows)}")
    return "\n\n".join(made) or "These weights were not evaluated (`onediff evaluate RUN`)."


def examples(folder: Path, run: RunFolder, trained: dict[str, Any]) -> str:
    """The first sample captions of the phase, with copies of their images."""
    written = run.phase(trained["phase"]) / "captions" / f"step-{trained['step']:08d}"
    if not (written / "table.json").is_file():
        return ""
    known = json.loads((written / "table.json").read_text())
    place = {name: known["columns"].index(name) for name in ("before", "after", "reference", "prediction")}
    rows = []
    (folder / "examples").mkdir()
    for row in known["data"][:EXAMPLES]:
        images = [Path(row[place[role]]["filepath"]).name for role in ("before", "after")]
        for image in images:
            shutil.copyfile(written / image, folder / "examples" / image)
        shown = (f"![{role}](examples/{image})" for role, image in zip(("before", "after"), images, strict=True))
        rows.append((*shown, row[place["prediction"]], row[place["reference"]]))
    return f"## Examples\n\n{table(('before', 'after', 'caption', 'written by people or the generator'), rows)}\n\n"
