"""LEVIR-CC: aerial photographs of the same place years apart, five sentences per pair."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.readers import Inputs, Reader, Row, split_name
from data_prep.readers.files import field_of, load_json
from onediff.errors import UserError


def rows(inputs: Inputs) -> Iterator[Row]:
    file = inputs.annotation("LevirCCcaptions.json")
    listed = load_json(file)
    if not isinstance(listed, dict) or not isinstance(listed.get("images"), list):
        raise UserError(f"{file}: expected an object with a list 'images'")
    for number, row in enumerate(listed["images"], 1):
        where = f"{file.name} image {number}"
        name, folder = str(field_of(row, "filename", where)), str(row.get("filepath") or field_of(row, "split", where))
        yield Row(
            where,
            name.rsplit(".", 1)[0],
            split_name(field_of(row, "split", where)),
            {"before": f"{folder}/A/{name}", "after": f"{folder}/B/{name}"},
            tuple(str(field_of(sentence, "raw", where)) for sentence in field_of(row, "sentences", where)),
            meta={"change_type": "change" if row.get("changeflag") else "none"},
        )


READER = Reader(
    name="levir-cc",
    summary="aerial photographs years apart, 10k pairs, five sentences per pair",
    source="https://github.com/Chen-Yang-Liu/RSICC",
    licence="academic use only",
    layout="--annotations LevirCCcaptions.json; --images DIR/{train,val,test}/{A,B}/<name>.png",
    rows=rows,
    published=True,
)
