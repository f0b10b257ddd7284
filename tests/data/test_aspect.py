"""Images that are not square: every tool that touches a data set says what a crop would lose of them."""

import logging
from pathlib import Path

import pytest
import small_run
from raw_data import encoded

from onediff.cli import main
from onediff.config.model import ImageConfig
from onediff.data.aspect import lost_to_crop
from onediff.errors import UserError
from onediff.runs.folder import RunFolder
from onediff.training.image_config import require_same_images, warn_of_crop

SAID = "`fit: crop` would cut away 50% of each image (mean of 8), and what changes there is lost"


def raw(folder: Path, width: int) -> Path:
    """Four pairs of images of `width` × 30 pixels and their table."""
    folder.mkdir()
    rows = ["before,after,caption,split"]
    for number in range(4):
        for role in ("before", "after"):
            (folder / f"{number}-{role}.png").write_bytes(encoded(2 * number + (role == "after"), width=width))
        rows.append(f"{number}-before.png,{number}-after.png,it moved,train")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


def test_data_tools_say_what_a_crop_would_lose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for width in (60, 32):
        table, out = raw(tmp_path / f"raw-{width}", width), tmp_path / f"pairs-{width}"
        collection = tmp_path / f"collection-{width}.yaml"
        collection.write_text(
            f"out: {tmp_path / f'built-{width}'}\nparts:\n  mine: {{reader: generic, annotations: {table}}}\n"
        )
        for words in (
            ["convert", "generic", "--table", str(table), "--out", str(out)],
            ["build", str(collection)],
            ["check", str(out)],
            ["stats", str(out)],
        ):
            assert main(["data", *words, "--processes", "1"]) == 0
            lines = capsys.readouterr().out.splitlines()
            said[words[0], width] = [line.replace(str(tmp_path), "") for line in lines if "fit: crop" in line]
    assert {lines[0].partition(SAID)[0] for (_, width), lines in said.items() if width == 60} == {
        "noted: /pairs-60/train: ",
        "noted: /built-60/mine/train: ",
        "remark: lost_to_crop: /pairs-60/train: ",
        "  ",
    }
    assert all(len(lines) == (width == 60) for (_, width), lines in said.items())


def test_training_says_it_where_a_crop_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for width, name in ((60, "pairs"), (30, "singles")):
        table = raw(tmp_path / f"raw-{width}", width)
        words = ["generic", "--table", str(table), "--out", str(tmp_path / name), "--processes", "1"]
        assert main(["data", "convert", *words]) == 0

    def warnings(**fit: object) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            warn_of_crop(small_run.config(tmp_path, 2, **fit))
        return [record.getMessage() for record in caplog.records]

    assert warnings() == []
    (line,) = warnings(**{"model.vision.image.fit": "crop"})
    assert line.startswith(f"data.sets.pairs: {SAID}") and "model.vision.image.fit=pad" in line
    # Where more than the middle square is cut, as DINOv2's processor does, square images lose too.
    assert len(warnings(**{"model.vision.image": {"size": 64, "fit": "crop", "shorter_side": 73}})) == 2
    assert lost_to_crop({(70, 70): 3}, ImageConfig(size=224, fit="crop", shorter_side=256)) == pytest.approx(0.234375)


def test_a_run_does_not_go_on_with_images_fitted_another_way(tmp_path: Path) -> None:
    """An older run, whose configuration says `crop`, under a file that leaves `fit` out."""
    before = small_run.config(tmp_path, 2, **{"model.vision.image.fit": "crop"})
    now, folder = small_run.config(tmp_path, 2), RunFolder(tmp_path)
    require_same_images(folder, before, now)
    (folder.checkpoints("one") / "step-000001").mkdir(parents=True)
    require_same_images(folder, before, before)
    with pytest.raises(
        UserError, match=r"fit=crop, and the configuration says pad; add model\.vision\.image\.fit=crop"
    ):
        require_same_images(folder, before, now)
    # Grids of tiles count where there are tiles.
    before, now = (
        small_run.config(tmp_path, 2, **{"model.vision.image": {"size": 64, "fit": "tiles", "max_tiles": most}})
        for most in (4, 6)
    )
    with pytest.raises(UserError, match=r"max_tiles=4, and the configuration says 6"):
        require_same_images(folder, before, now)
    more = small_run.config(tmp_path, 2, **{"model.vision.image.max_tiles": 6})
    require_same_images(folder, small_run.config(tmp_path, 2), more)
