"""`onediff export` of a real run: its card, earlier exports, and runs of others that may only be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from small_run import onediff, render, train

from onediff.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = render(tmp_path_factory.mktemp("data"), pairs=20, singles=20)
    done = train(folder, data, 1, "--phases", "warm-up", **{"training.captions_every": 1})
    assert done.returncode == 0, done.stderr
    done = onediff(["evaluate", str(folder), "limit=2", "bootstrap=20"])
    assert done.returncode == 0, done.stderr
    return folder


def test_an_export_has_a_card_and_is_not_replaced_unasked(run, tmp_path, capsys):
    words = ["export", str(run), str(tmp_path / "model")]
    assert main(words) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    for told in ("| warm-up | 1 |", "pairs-test", "| CIDEr |", "](examples/000-before.png)", "CC0-1.0", "## Limits"):
        assert told in card, card
    assert (tmp_path / "model" / "examples" / "000-before.png").is_file()
    before = (tmp_path / "model" / "config.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(words) == 2
    assert "model: already holds an export; replace it with --overwrite" in capsys.readouterr().err
    assert (tmp_path / "model" / "config.json").stat().st_mtime_ns == before
    assert main([*words, "--overwrite"]) == 0


def test_a_run_that_cannot_be_written_to_is_captioned_from_by_a_copy_in_the_cache(run, tmp_path, monkeypatch, capsys):
    """Root may write anywhere, so the lock of the run's own export is made one that nobody can open."""
    shutil.rmtree(run / "model", ignore_errors=True)
    (run / ".model.lock").unlink(missing_ok=True)
    (run / ".model.lock").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    assert main(["caption", str(tmp_path / "a.png"), str(tmp_path / "a.png"), "--model", str(run)]) == 0
    assert not (run / "model").exists() and list((tmp_path / "cache").rglob("onediff.yaml"))
    (run / ".model.lock").rmdir()


def test_a_place_that_cannot_be_written_is_one_line(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["export", str(run), str(tmp_path / "file" / "model")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("onediff: error: ") and "cannot be written" in line
