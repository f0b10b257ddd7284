"""Protocols: every rule acts as its module says, and the demo's rule reads every wording of the renderer."""

import inspect
from pathlib import Path
from typing import get_args

import pytest
import yaml

from data_prep.scenes.config import ChangeType
from data_prep.scenes.words import CLAUSES, WORDINGS
from onediff.cli import main
from onediff.cli.evaluate import sets_of, task_of
from onediff.config.collection import Collection
from onediff.config.compose import configs_folder, load_run, write_run
from onediff.config.data import PromptConfig
from onediff.config.evaluation import PROTOCOLS, EvaluationConfig
from onediff.config.section import validated
from onediff.errors import UserError
from onediff.evaluation.files import read_references
from onediff.evaluation.protocols import protocol
from onediff.evaluation.protocols.demo import read_type
from onediff.evaluation.protocols.protocol import digest
from onediff.evaluation.run import Evaluation, caveats
from onediff.evaluation.scoring import score

FILL = {
    "at": "at the top left",
    "old": "large red metal cube",
    "from": "the top left",
    "a_new": "an old blue rubber sphere",
    "to": "the middle",
    "new_at": "in the middle",
    "colour": "blue",
    "larger": "smaller",
    "grown": "shrunk",
    "other": "green cone",
}


@pytest.fixture(autouse=True)
def _without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_protocol_is_documented_and_has_a_source(name: str) -> None:
    import importlib

    module = importlib.import_module(f"onediff.evaluation.protocols.{name.replace('-', '_')}")
    assert len(inspect.getdoc(module) or "") > 150
    found = protocol(name)
    assert found.source
    assert found.pairs
    for one in found.published:
        assert one.source.startswith("https://")
        assert all(0 < value < 2 for value in one.scores.values()), "fractions, not percent"


def test_published_numbers() -> None:
    cider = {(name, one.model): one.scores["CIDEr"] for name in PROTOCOLS for one in protocol(name).published}
    assert cider == {
        ("spot-the-diff", "DDLA"): 0.351,
        ("spot-the-diff", "OneDiff"): 0.566,
        ("spot-the-diff", "M3Diff"): 0.711,
        ("image-editing-request", "OneDiff"): 1.096,
        ("image-editing-request", "M3Diff"): 1.366,
        ("birds-to-words", "OneDiff"): 0.284,
    }


def test_references_are_treated_as_each_protocol_says() -> None:
    given = {"a": ["one", "", "two"], "b": [""]}
    assert protocol("spot-the-diff").treated(given) == given
    assert protocol("plain").treated(given) == given
    assert protocol("spot-the-diff-joined").treated(given) == {"a": ["one. two"], "b": [""]}
    (cut,) = protocol("spot-the-diff-joined").treated({"a": [" ".join(["a", "b"] * 29), "c d e"]})["a"]
    assert cut == " ".join(["a", "b"] * 29) + ". c d"
    assert protocol("birds-to-words").treated(given) == {"a": ["one", "two"]}
    for name in ("clevr-change", "image-editing-request", "levir-cc", "demo"):
        with pytest.raises(UserError, match=f"empty caption for id 'a'; protocol {name} has none"):
            protocol(name).treated(given)


def test_joined_and_several_references_are_different_numbers() -> None:
    given = {"a": ["the car is gone", "a man walks"], "b": ["a dog"], "c": ["a red bus left"]}
    answers = {"a": "the car is gone", "b": "a dog", "c": "a red bus left"}
    several, joined = (score(given, answers, name) for name in ("spot-the-diff", "spot-the-diff-joined"))
    assert several.scores["BLEU-1"] == pytest.approx(1)
    assert joined.scores["BLEU-1"] < 0.9
    assert several.references != joined.references


def test_joined_texts_are_those_that_card_publishes(real_data: Path) -> None:
    """The digest is of `spot-the-diff/change_multi_captions.json` of https://github.com/tuyunbin/CARD, its test split."""
    captions = read_references(real_data / "spot-the-diff" / "predictions" / "ddla_rerun_gtfile.json").captions
    treated = protocol("spot-the-diff-joined").treated(captions)
    assert len(treated) == 1270
    assert digest(treated) == "b4d9c2a7d9f035aa"


def test_a_protocol_that_nothing_proves_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proven = {name for name in PROTOCOLS if protocol(name).checked}
    assert proven == {"plain", "spot-the-diff", "spot-the-diff-joined", "demo"}
    (tmp_path / "r.csv").write_text("id,caption\n1,a house\n2,a road\n")
    words = ["score", "--references", f"{tmp_path}/r.csv", "--predictions", f"{tmp_path}/r.csv", "--bootstrap", "0"]
    assert main([*words, "--protocol", "levir-cc"]) == 0
    assert "note: protocol levir-cc is not proven: no published predictions" in capsys.readouterr().out
    assert main(words) == 0
    assert "not proven" not in capsys.readouterr().out


def test_clevr_groups() -> None:
    kinds = ("color", "material", "add", "drop", "move", "none", "none", "none")
    given = {f"{i:06}.png": [f"the {kind} thing number {i}"] for i, kind in enumerate(kinds)}
    answers = {pair: captions[0] if i < 5 else "wrong" for i, (pair, captions) in enumerate(given.items())}
    found = score(given, answers, "clevr-change", change_types=dict(zip(given, kinds, strict=True)))
    assert {name: pairs for name, (pairs, _) in found.groups.items()} == {
        "semantic": 5, "distractor": 3, "color": 1, "material": 1, "add": 1, "drop": 1, "move": 1, "none": 3,
    }  # fmt: skip
    assert found.groups["semantic"][1]["ROUGE-L"] == pytest.approx(1)
    assert found.groups["distractor"][1]["ROUGE-L"] == 0
    assert found.scores["ROUGE-L"] == pytest.approx(5 / 8)


@pytest.mark.parametrize("kind", get_args(ChangeType))
def test_the_demo_rule_reads_every_wording(kind: ChangeType) -> None:
    if kind == "several":
        clauses = [wording.format(**FILL) for pair in CLAUSES.values() for wording in pair]
        for one, two in zip(clauses, clauses[3:], strict=False):
            assert read_type(f"{one} and {two}") == "several", (one, two)
            assert read_type(f"{one}, {two} and {one}") == "several", (one, two)
        return
    for wording in (*WORDINGS[kind], *CLAUSES.get(kind, ())):
        assert read_type(wording.format(**FILL)) == kind, wording


def test_the_demo_rule_does_not_guess() -> None:
    assert read_type("a large red cube") is None
    assert read_type("") is None


def test_type_accuracy_counts_pairs_of_known_type() -> None:
    given = {"a": ["the cube is gone"], "b": ["nothing has changed"], "c": ["no change"]}
    answers = {"a": "the cone is missing", "b": "a cube has appeared", "c": "a dog"}
    found = score(given, answers, "demo", change_types={"a": "remove", "b": "none"})
    assert found.scores["change type"] == 0.5
    assert "change type" not in score(given, answers, "plain", change_types={"a": "remove"}).scores


def test_digest_ignores_order_but_not_words() -> None:
    assert digest({"a": ["x", "y"], "b": ["z"]}) == digest({"b": ["z"], "a": ["y", "x"]})
    assert digest({"a": ["x"]}) != digest({"a": ["y"]})


def test_evaluation_config_is_strict() -> None:
    assert validated(EvaluationConfig, {"protocol": "demo", "num_beams": 3}, "x").num_beams == 3
    for values, said in (
        ({"protocol": "levir"}, r"no protocol 'levir' \(did you mean 'levir-cc'\?\)"),
        ({"do_sample": True, "num_beams": 2}, "choose sampling or beam search"),
        ({"top_p": 0.9}, "set do_sample: true"),
        ({"max_new_token": 3}, "did you mean 'max_new_tokens'"),
    ):
        with pytest.raises(UserError, match=said):
            validated(EvaluationConfig, values, "run.yaml")


def test_protocols_ask_what_the_papers_mix_trains():
    """Each source of DiffCap has its own instructions, and its benchmark asks the first of them."""
    data = load_run("configs/onediff_7b.yaml").data
    tasks = {name: one.task for name, one in data.sets.items() if not name.startswith("llava")}
    asked = [data.prompt.wordings(task) for task in tasks.values()]
    assert len(tasks) == 6 and all(len(wordings) >= 3 for wordings in asked)
    together = [wording for wordings in asked for wording in wordings] + data.prompt.wordings("pair")
    assert len(set(together)) == len(together)
    parts = Collection.model_validate(yaml.safe_load((configs_folder() / "diffcap.yaml").read_text())).parts
    assert {name: parts[name].task for name in tasks} == tasks
    for name in PROTOCOLS:
        rules = protocol(name)
        if name.removesuffix("-joined") in tasks:
            assert rules.task == tasks[name.removesuffix("-joined")]
            assert rules.instruction == data.prompt.wordings(rules.task)[0]


def test_a_run_knows_the_task_of_its_data_sets(tmp_path):
    config = load_run("configs/onediff_7b.yaml")
    write_run(config, tmp_path / "config.yaml")
    assert task_of(Path("data/diffcap/birds-to-words").resolve(), sets_of(tmp_path)) == "birds"
    assert task_of(Path("data/other"), sets_of(tmp_path)) is None
    assert task_of(Path("data/diffcap/birds-to-words"), sets_of(tmp_path / "export")) is None


def test_scores_that_are_not_those_of_the_papers_say_so():
    part = EvaluationConfig(protocol="spot-the-diff", split="val", limit=7)
    leakage = {"train": {"same_images": 2, "one_image": 0}, "test": {"same_images": 4, "one_image": 0}}
    assert caveats(part, 7, leakage) == [
        "only the first 7 pairs were scored (evaluation.limit)",
        "published scores are for the split test, these are for val",
        "2 pairs of the split are also in train, and 0 share one image with it",
    ]
    assert caveats(part.model_copy(update={"split": "test"}), 6, {}) == []


@pytest.mark.parametrize(
    ("task", "protocol_name", "asked"),
    [("birds", "plain", "b"), (None, "birds-to-words", "b"), (None, "spot-the-diff", "p"), (None, "plain", "p")],
)
def test_pairs_are_asked_what_their_data_set_was_trained_on(task, protocol_name, asked):
    prompt = PromptConfig(instructions={"pair": ["p", "q"], "single": "s", "couple": "c", "birds": ["b", "d"]})
    plan = Evaluation(Path(), Path(), EvaluationConfig(protocol=protocol_name), Path(), task)
    assert plan.usual(prompt) == asked
