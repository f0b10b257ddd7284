"""Where the captions and scores of an evaluation go."""

from __future__ import annotations

from pathlib import Path

import yaml

from onediff.cli.evaluate import name_of, sets_of
from onediff.config.compose import load_run


def test_another_data_set_of_the_same_name_leaves_the_scores_of_the_runs_own(tmp_path: Path) -> None:
    own = load_run(Path("configs/demo.yaml")).model_dump(mode="json", exclude_unset=True)
    own["data"]["sets"] = {
        "pairs": {"path": str(tmp_path / "scenes" / "pairs")},
        "singles": {"path": "data/scenes/singles"},
    }
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(own))
    assert name_of(tmp_path / "scenes" / "pairs", sets_of(run)) == "pairs"
    assert name_of(tmp_path / "second" / "pairs", sets_of(run)) == "second-pairs"
    assert name_of(tmp_path / "mine", sets_of(run)) == "mine"
    assert name_of(tmp_path / "second" / "pairs", sets_of(tmp_path / "export")) == "pairs", "an export has no data sets"
