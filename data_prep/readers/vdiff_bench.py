"""VDiff-Bench: pairs of images with four statements each; the true one becomes the caption."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_prep.readers import Inputs, Reader, Row
from data_prep.readers.cells import image, word
from data_prep.readers.files import field_of
from data_prep.readers.hf import tables_in
from data_prep.readers.tables import table_rows
from onediff.errors import UserError


def rows(inputs: Inputs) -> Iterator[Row]:
    base = inputs.annotations or inputs.images
    if base is None:
        raise UserError("--annotations: name the folder with data/train-*.parquet")
    for table, _ in tables_in(base):
        for where, cells in table_rows(table):
            choices = field_of(cells, "choices", where) or []
            truth = chosen(choices, word(field_of(cells, "ground truth", where)))
            meta = {"change_type": word(cells.get("change category")), "source": word(cells.get("source"))}
            yield Row(
                where,
                word(cells.get("index")),
                "test",  # a benchmark, though its files are called train
                {"before": image(cells.get("image_1")), "after": image(cells.get("image_2"))},
                (truth,),
                meta={**{name: value for name, value in meta.items() if value}, "choices": choices},
                fault="" if truth else "none of the choices is marked as true",
            )


def chosen(choices: list[Any], truth: str) -> str:
    """The true choice, which the data set gives as text or letter; empty if `truth` is neither."""
    if truth in choices:
        return truth
    place = "ABCDEFGH".find(truth.strip("()."))
    return str(choices[place]) if len(truth.strip("().")) == 1 and 0 <= place < len(choices) else ""


READER = Reader(
    name="vdiff-bench",
    summary="a benchmark of 1,051 questions with four choices about what differs between two images",
    source="https://huggingface.co/datasets/elaine1wan/image_diff_mcq_data",
    licence="",
    layout="--annotations DIR/data/train-*.parquet with image_1, image_2, choices, ground truth, change category, source, "
    "index (from the data set's card on the hub; the paper, arXiv 2609.06245, counts 1,756 questions)",
    rows=rows,
    published=True,
)
