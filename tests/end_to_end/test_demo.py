"""The demo: which commands it runs, the first time, after an interruption, and again."""

from pathlib import Path

import pytest

from onediff.cli import demo, main
from onediff.config.compose import load_run, write_run

OVERRIDES = ["phases.two.steps=3"]


@pytest.fixture
def steps(tmp_path, monkeypatch) -> list[list[str]]:
    """The commands that the demo would run; the one that makes the example fails on the first call."""
    monkeypatch.chdir(tmp_path)
    found: list[list[str]] = []

    def step(*words: object) -> None:
        found.append([str(word) for word in words])
        if words[0] == "train":
            run = Path(found[-1][found[-1].index("--run") + 1])
            run.mkdir(parents=True, exist_ok=True)
            write_run(load_run("configs/demo.yaml", OVERRIDES), run / "config.yaml")

    def pair(split: Path, folder: Path) -> tuple[Path, Path, str]:
        if not any("--resume" in words for words in found):
            raise KeyboardInterrupt
        folder.mkdir()
        return folder / "before.png", folder / "after.png", "the cube is gone"

    monkeypatch.setattr(demo, "step", step)
    monkeypatch.setattr(demo, "held_out_pair", pair)
    monkeypatch.setattr(demo, "show_outcome", lambda run, split: None)
    return found


def test_an_interrupted_demo_goes_on_and_a_finished_one_is_left_alone(steps, tmp_path, capsys):
    assert main(["demo", *OVERRIDES]) == 130
    assert "--overwrite" in steps[0] and "--resume" not in steps[2]
    steps.clear()
    assert main(["demo", *OVERRIDES]) == 0
    shown = capsys.readouterr().out
    assert "runs/demo is unfinished and continues" in shown and "demo-page runs/demo" in shown
    assert [words[0] for words in steps] == ["data", "demo-tower", "train", "calibrate", "evaluate", "caption"]
    assert "--overwrite" not in steps[0], "images that are there are not rendered again"
    assert steps[2][-1] == "--resume" and steps[2][steps[2].index("--run") + 1] == "runs/demo"
    steps.clear()
    assert main(["demo", *OVERRIDES]) == 130
    assert "--resume" not in steps[2] and "runs/demo-2" in steps[2]


def test_other_settings_make_another_run(steps, tmp_path):
    assert main(["demo", *OVERRIDES]) == 130
    steps.clear()
    assert main(["demo", "phases.two.steps=4"]) == 130
    assert "--resume" not in steps[2] and "runs/demo-2" in steps[2]
