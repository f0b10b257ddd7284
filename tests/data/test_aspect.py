"""Images that are not square: warnings about what a crop would lose."""

import logging
from pathlib import Path

import pytest
import small_run
from raw_data import encoded

from onediff.cli import main
from onediff.config.compose import load_run
from onediff.config.model import ImageConfig
from onediff.data.aspect import lost_to_crop
from onediff.errors import UserError
from onediff.runs.folder import RunFolder
from onediff.training.prepare import prepare, require_same_images, warn_of_crop

SAID = "`fit: crop` would cut away 50% of each image (mean of 8), and the model cannot see changes there"


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


def test_statistics_say_what_a_crop_would_lose_and_conversions_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default keeps images whole, so a warning at every conversion would be noise."""
    for width in (60, 32):
        table, out = raw(tmp_path / f"raw-{width}", width), tmp_path / f"pairs-{width}"
        said = {}
        for words in (
            ["convert", "generic", "--table", str(table), "--out", str(out)],
            ["check", str(out)],
            ["stats", str(out)],
        ):
            assert main(["data", *words, "--processes", "1"]) == 0
            said[words[0]] = capsys.readouterr().out
        assert "fit: crop" not in said["convert"] + said["check"]
        assert (SAID in said["stats"]) == (width == 60)


def test_training_warns_if_it_is_configured_to_crop(
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


def test_a_run_that_crops_goes_on_with_other_settings_after_the_data_of_an_earlier_phase_is_gone(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path / "run")
    run.tokenizer.mkdir(parents=True)
    first, second = (
        small_run.config(tmp_path / "gone", steps, **{"model.vision.image.fit": "crop"}) for steps in (2, 3)
    )
    for config in (first, second):
        prepare(run, config)
    assert load_run(run.config) == second and load_run(run.path / "config.before-1.yaml") == first


def image_settings(folder: Path, **overrides: object) -> ImageConfig:
    return small_run.config(folder, 2, **overrides).model.vision.image


def test_a_run_does_not_resume_with_another_fit(tmp_path: Path) -> None:
    """An older run configured with `crop`, resumed with a file that does not set `fit`."""
    before, folder = image_settings(tmp_path, **{"model.vision.image.fit": "crop"}), RunFolder(tmp_path)
    now = image_settings(tmp_path)
    require_same_images(folder, before, now)
    (folder.checkpoints("one") / "step-000001").mkdir(parents=True)
    require_same_images(folder, before, before)
    with pytest.raises(UserError, match=r"fit=crop, but the configuration has pad; add model\.vision\.image\.fit=crop"):
        require_same_images(folder, before, now)
    # Grids of tiles count where there are tiles.
    before, now = (
        image_settings(tmp_path, **{"model.vision.image": {"size": 64, "fit": "tiles", "max_tiles": most}})
        for most in (4, 6)
    )
    with pytest.raises(UserError, match=r"max_tiles=4, but the configuration has 6"):
        require_same_images(folder, before, now)
    require_same_images(folder, padded := image_settings(tmp_path), padded.model_copy(update={"max_tiles": 6}))
