"""Builds a collection from several raw data sets: converts the missing parts and leaves existing ones alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from data_prep.captioning.table import caption_rows, read_prompt
from data_prep.convert import convert
from data_prep.images import Encoding
from data_prep.plan import Choices
from data_prep.readers import Inputs, Row, reader
from data_prep.report import Report, table
from data_prep.retrieve import captions_of, find_pairs
from data_prep.share import Share
from data_prep.skipping import max_skipped
from onediff.config.collection import Captioning, Collection, CollectionPart, Retrieval
from onediff.errors import UserError
from onediff.llm import Asker, Cache


@dataclass(frozen=True)
class Built:
    """The outcome for one part: its samples by split, or why there are none."""

    samples: dict[str, int]
    remark: str = ""


def build(
    collection: Collection, processes: int | None = None, say: Callable[[str], None] = print, share: Share | None = None
) -> dict[str, Built]:
    """Converts every part whose raw files exist. Reports a part that fails, and continues with the others.

    Parts that a language model captions cannot be shared among tasks; the call without a `share` makes them.
    """
    built = {}
    for name, part in collection.parts.items():
        if share and part.captions:
            continue
        if absent := part.missing_files():
            source = reader(part.retrieve.captions_reader if part.retrieve else part.reader).source
            built[name] = Built({}, f"raw files missing: {absent[0]}" + (f", published at {source}" if source else ""))
            continue
        say(f"{name} …")
        try:
            reports = build_part(part, collection.out / name, processes, share)
            built[name] = Built({report.manifest.split: report.manifest.samples for report in reports})
        except UserError as error:
            built[name] = Built({}, str(error))
    return built


def build_part(part: CollectionPart, out: Path, processes: int | None, share: Share | None = None) -> list[Report]:
    """Writes captions if the part needs them, then shards. Raises UserError."""
    images = part.images
    if images is None and part.annotations is not None:  # next to the table, as in 'onediff data convert'
        images = part.annotations if part.annotations.is_dir() else part.annotations.parent
    chosen, inputs = reader(part.reader), Inputs(part.annotations, images, hosts=part.fetch)
    if part.retrieve is not None:
        assert images is not None
        inputs = Inputs(retrieved(part.retrieve, images, out.with_name(f"{out.name}.pairs.csv")), images)
    if part.captions is not None:
        written = out.with_name(f"{out.name}.captions.jsonl")
        written.parent.mkdir(parents=True, exist_ok=True)
        failed = write_captions(part.captions, list(chosen.rows(inputs)), written)
        if failed:
            raise UserError(f"{written}: {failed:,} questions failed; run the command again to retry them")
        chosen, inputs = reader("generic"), Inputs(written, images, hosts=part.fetch)
    return convert(
        chosen,
        inputs,
        out,
        choices=Choices(part.splits, allow_leakage=part.allow_leakage),
        encoding=Encoding(part.max_side),
        max_skipped=max_skipped(part.max_skipped),
        processes=processes,
        seed=0,
        share=share,
    )


def retrieved(how: Retrieval, images: Path, table: Path) -> Path:
    """The table of pairs, made once; delete it after changing the settings of the search."""
    if not table.is_file():
        table.parent.mkdir(parents=True, exist_ok=True)
        known = captions_of(reader(how.captions_reader).rows(Inputs(how.captions, images)))
        find_pairs(
            images, table, how.model, low=how.low, high=how.high, nearest=how.nearest, each=how.each, captions=known
        )
    return table


def write_captions(how: Captioning, rows: list[Row], out: Path) -> int:
    """Writes the table of captions; returns the number of failed questions."""
    with closing(Cache(out.with_name(out.name + ".answers.jsonl"))) as cache:
        asker = Asker(cache, how.model, how.base_url, concurrency=how.concurrency, per_minute=how.per_minute)
        return caption_rows(rows, read_prompt(how.prompt), asker, out)["failed"]


def show_collection(collection: Collection, built: dict[str, Built]) -> str:
    """A table of the parts, with published and actual counts, and the `sets` and `mix` for a run's configuration."""
    rows = []
    for name, part in collection.parts.items():
        if name not in built:
            continue
        there = built[name].samples
        splits = ", ".join(f"{split} {number:,}" for split, number in there.items())
        rows.append(
            [name, f"{part.weight:g}", part.published or "", sum(there.values()) or "", splits or built[name].remark]
        )
    text = table(rows, ("part", "weight", "published", "here", "splits"))
    done = [name for name in collection.parts if name in built and built[name].samples]
    if done:
        sets = "\n".join(f"    {name}: {_data_set(collection, name)}" for name in done)
        mix = ", ".join(f"{name}: {collection.parts[name].weight:g}" for name in done)
        text += f"\n\nIn a run's configuration:\n  sets:\n{sets}\n  mix: {{{mix}}}"
    return text


def _data_set(collection: Collection, name: str) -> str:
    task = collection.parts[name].task
    return f"{{path: {collection.out / name}, task: {task}}}" if task else str(collection.out / name)
