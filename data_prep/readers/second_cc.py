"""SECOND-CC: aerial images of the same place at two times, five sentences per pair."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.readers import Inputs, Reader, Row, split_name
from data_prep.readers.files import field_of, json_rows


def rows(inputs: Inputs) -> Iterator[Row]:
    file = inputs.annotation("SECOND-CC-AUG.json", "SECOND-CC.json")
    for number, row in enumerate(json_rows(file, "images"), 1):
        where = f"{file.name} image {number}"
        name, split = str(field_of(row, "filename", where)), str(field_of(row, "split", where))
        said = field_of(row, "sentences", where)
        captions = tuple(str(field_of(sentence, "raw", where)) for sentence in (said if isinstance(said, list) else []))
        meta = {"change_type": "change" if row["changeflag"] else "none"} if "changeflag" in row else {}
        images: dict[str, str | bytes] = {"before": f"{split}/rgb/A/{name}", "after": f"{split}/rgb/B/{name}"}
        yield Row(where, name.rpartition(".")[0], split_name(split), images, captions, meta=meta)


READER = Reader(
    name="second-cc",
    summary="aerial images at two times, 6k pairs (more with augmented ones), five sentences per pair",
    source="https://github.com/ChangeCapsInRS/SecondCC",
    licence="see the data set's page",
    layout="--annotations SECOND-CC-AUG.json (images: filename, split, sentences: raw, changeflag); --images "
    "DIR/{train,val,test}/rgb/{A,B}/<filename> (as public loaders of the published archive read it)",
    rows=rows,
    published=True,
)
