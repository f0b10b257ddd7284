"""CLEVR-Change: rendered scenes with one change, and the same scenes with another viewpoint only."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.readers import Inputs, Reader, Row, split_name
from data_prep.readers.files import load_json, sentences_of
from onediff.errors import UserError

# Change types of type_mapping.json, by this project's names.
CHANGES = {"color": "recolour", "material": "material", "move": "move", "drop": "remove", "add": "add"}


def rows(inputs: Inputs) -> Iterator[Row]:
    base = inputs.annotations
    if base is None or not base.is_dir():
        raise UserError(
            "--annotations: name the folder with change_captions.json, no_change_captions.json, splits.json"
        )
    split_of = {
        int(number): split_name(split)
        for split, numbers in load_json(base / "splits.json").items()
        for number in numbers
    }
    mapping = load_json(base / "type_mapping.json") if (base / "type_mapping.json").is_file() else {}
    change_of = {_number(name): CHANGES.get(change, change) for change, names in mapping.items() for name in names}
    for kind, folder, word in (("change", "sc_images", "semantic"), ("no_change", "nsc_images", "nonsemantic")):
        file = base / f"{kind}_captions.json"
        captions = load_json(file)
        for name in captions:
            where = f"{file.name} {name!r}"
            number = _number(name)
            if not number.isdigit() or int(number) not in split_of:
                raise UserError(f"{where}: splits.json has no such image")
            meta = {"change_type": change_of.get(number, "change") if kind == "change" else "none"}
            yield Row(
                where,
                f"{number}-{kind.replace('_', '-')}",
                split_of[int(number)],
                {"before": f"images/CLEVR_default_{number}.png", "after": f"{folder}/CLEVR_{word}_{number}.png"},
                sentences_of(captions, name, where),
                meta=meta,
            )


def _number(name: str) -> str:
    """`000012` for `CLEVR_default_000012.png`, as in the captions, or `000012.png`, as in type_mapping.json."""
    return name.removesuffix(".png").removeprefix("CLEVR_default_")


READER = Reader(
    name="clevr-change",
    summary="rendered scenes, 80k pairs, half with a change and half with another viewpoint only",
    source="https://github.com/Seth-Park/RobustChangeCaptioning",
    licence="CC BY 4.0",
    layout="--annotations DIR/{change_captions,no_change_captions,splits,type_mapping}.json; "
    "--images DIR/{images,sc_images,nsc_images}/CLEVR_{default,semantic,nonsemantic}_000000.png",
    rows=rows,
    published=True,
)
