"""Birds-to-Words: pairs of birds with several descriptions, each in its own row."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from data_prep.readers import Inputs, Reader, Row, split_name
from data_prep.readers.files import field_of, open_text
from onediff.errors import UserError


def rows(inputs: Inputs) -> Iterator[Row]:
    file = inputs.annotation("birds-to-words-v1.0.tsv")
    with open_text(file) as lines:
        # Quotation marks belong to the descriptions, not to the table.
        for number, row in enumerate(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), 2):
            where = f"{file.name} line {number}"
            photos = [photo_id(field_of(row, f"img{n}ImgURL", where), where) for n in (1, 2)]
            yield Row(
                where,
                "-".join(photos),
                split_name(field_of(row, "split", where)),
                {"before": f"{photos[0]}.jpg", "after": f"{photos[1]}.jpg"},
                (row.get("description") or "",),
                meta={"species": [row.get("img1Species"), row.get("img2Species")]},
            )


def photo_id(url: str | None, where: str) -> str:
    """`https://…/photos/4150/large.jpg?1` → `4150`: the number in the name of the user's image file."""
    found = re.search(r"/(\d+)(?:/|\.|\?|$)", url or "")
    if not found:
        raise UserError(f"{where}: no photo number in the URL {url!r}")
    return found[1]


READER = Reader(
    name="birds-to-words",
    summary="pairs of birds, 3.3k pairs, about five descriptions per pair",
    source="https://github.com/google-research-datasets/birds-to-words",
    licence="CC BY-SA 4.0",
    layout="--annotations birds-to-words-v1.0.tsv; --images DIR/<photo id>.<jpg|jpeg|png>, the number in the image's URL",
    rows=rows,
    published=True,
)
