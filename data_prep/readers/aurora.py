"""AURORA: pairs of frames or simulated scenes, with the action between them as an edit instruction."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.readers import Inputs, Reader, Row
from data_prep.readers.files import field_of, json_array
from onediff.errors import UserError

TASKS = ("ag", "kubric", "magicbrush", "something")


def rows(inputs: Inputs) -> Iterator[Row]:
    base = inputs.annotations or inputs.images
    if base is None:
        raise UserError("--annotations: name the folder that contains data/, or one train.json")
    files = [base] if base.is_file() else [base / "data" / task / "train.json" for task in TASKS]
    files = [file for file in files if file.is_file()]
    if not files:
        raise UserError(f"{base}: no data/<task>/train.json here; the tasks are {', '.join(TASKS)}")
    for file in files:
        for number, row in enumerate(json_array(file), 1):
            where = f"{file.parent.name}/{file.name} row {number}"
            before, after = (str(field_of(row, name, where)) for name in ("input", "output"))
            edit = str(field_of(row, "instruction", where))
            yield Row(
                where,
                "",
                "train",
                {"before": before, "after": after},
                (edit,),
                meta={"task": file.parent.name, "edit": edit},
            )


READER = Reader(
    name="aurora",
    summary="frames and simulated scenes with the action between them, 289k pairs; the caption is the edit instruction",
    source="https://github.com/McGill-NLP/AURORA",
    licence="MIT; images under their own data sets' terms",
    layout="--annotations DIR and --images DIR, with DIR/data/{ag,kubric,magicbrush,something}/train.json (instruction, "
    "input, output: paths from DIR) and DIR/data/<task>/images/ (as the repository's README has it)",
    rows=rows,
    published=True,
)
