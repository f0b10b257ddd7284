"""Sample captions with their images: a folder with the images, an MLflow table, and one HTML page."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onediff.atomic import write_whole
from onediff.data.formats import open_image, to_rgb

TABLE = "table.json"
PAGE = "index.html"
PAGE_PIXELS = 384
STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;margin:1.5em}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.5em;vertical-align:top;text-align:left}img{max-width:24em;display:block}"
)


def write_table(folder: Path, artifact: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes `rows` into `folder`: every image, `table.json` as MLflow's table view reads it, and `index.html`.

    An image is a `Path`, a `PIL.Image`, or an array [height, width, 3] of uint8; anything else is shown as text.
    `artifact` is the folder's path among the artifacts of the MLflow run. Rows may differ in their columns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells: list[list[Any]] = []
    lines = []
    for index, row in enumerate(rows):
        cells.append([])
        lines.append("<tr>")
        for column in columns:
            value = row.get(column, "")
            if isinstance(value, (Path, Image.Image, np.ndarray)):
                image = opened(value)
                name = f"{index:03d}-{column}.png"
                image.save(folder / name, compress_level=3)
                place = f"{artifact}/{name}"
                cells[-1].append({"type": "image", "filepath": place, "compressed_filepath": place})
                lines.append(f'<td><img alt="{html.escape(column)}" src="{embedded(image)}"></td>')
            else:
                value = value if isinstance(value, (str, int, float, bool)) else str(value)
                cells[-1].append(value)
                lines.append(f"<td>{html.escape(str(value))}</td>")
        lines.append("</tr>")
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    page = f'<!doctype html><meta charset="utf-8"><title>{html.escape(artifact)}</title><style>{STYLE}</style>'
    page += f"<h1>{html.escape(artifact)}</h1><table><tr>{head}</tr>{''.join(lines)}</table>\n"
    write_whole(folder / PAGE, page)
    write_whole(folder / TABLE, json.dumps({"columns": columns, "data": cells}, ensure_ascii=False))


def opened(image: Path | Image.Image | np.ndarray) -> Image.Image:
    """The image in RGB."""
    if isinstance(image, Path):
        with open_image(image) as file:
            return to_rgb(file)
    return to_rgb(image if isinstance(image, Image.Image) else Image.fromarray(image))


def embedded(image: Image.Image) -> str:
    """The image, scaled down, as a `data:` URL, so that the page is complete wherever it is shown."""
    small = image.copy()
    small.thumbnail((PAGE_PIXELS, PAGE_PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
