"""The reference of the configuration: made from the sections, complete, and found by key."""

from pathlib import Path

import pytest
import yaml

from onediff.cli import main
from onediff.config.compose import load_run
from onediff.config.reference import keys, reference

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_every_key_has_a_meaning():
    assert [key.path for key in keys() if not key.meaning] == []


def test_the_page_is_generated_from_the_sections():
    assert PAGE.read_text(encoding="utf-8") == reference(), "run: onediff config --reference > docs/configuration.md"


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("optimizer.lr", "optimizer.lr"),
        ("phases.two.micro_batch", "phases.<name>.micro_batch"),
        ("data.sets.my-pairs.path", "data.sets.<name>.path"),
        ("bootstrap", "evaluation.bootstrap"),
    ],
)
def test_a_key_is_explained_by_its_path_or_by_a_unique_last_component(asked, path, capsys):
    assert main(["config", "explain", asked]) == 0
    first, kind, default, meaning = capsys.readouterr().out.splitlines()
    assert first == path and kind.strip() and default.strip() and meaning.strip()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("optimizer.ir", "optimizer.ir: no such key (did you mean 'optimizer.lr'?)"),
        ("lr", "lr: ambiguous; could be optimizer.lr, phases.<name>.lr"),
    ],
)
def test_an_unknown_or_ambiguous_key_is_refused_with_the_nearest_keys(asked, message, capsys):
    assert main(["config", "explain", asked]) == 2
    assert message in capsys.readouterr().err


def test_show_prints_the_complete_configuration_which_loads_again(tmp_path, capsys):
    assert main(["config", "show", "configs/demo.yaml", "optimizer.lr=0.5"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["training"]["log_every"] == 1  # a default
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert load_run(again) == load_run("configs/demo.yaml", ["optimizer.lr=0.5"])
