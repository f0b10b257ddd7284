"""Scores: equal to pycocoevalcap's own, per pair and in sum; baselines; intervals and paired tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onediff.errors import UserError
from onediff.evaluation.baselines import baselines, best_constant
from onediff.evaluation.files import References
from onediff.evaluation.java import JavaProgram, JavaUnavailable
from onediff.evaluation.metrics import chosen, metric, scores_of
from onediff.evaluation.metrics.cider import cider_rows
from onediff.evaluation.metrics.meteor import LONGEST, meteor_program
from onediff.evaluation.protocols import protocol
from onediff.evaluation.resampling import intervals
from onediff.evaluation.scoring import Scores, compare, score, score_all
from onediff.evaluation.tokenisation import plain_tokens, ptb_tokens, tokenised

CLASSIC = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "CIDEr-D", "CIDEr-plain")
PLACES = ("left", "top right", "middle", "bottom left", "right", "top")
SHAPES = ("cube", "sphere", "cone", "car", "person")


def references() -> dict[str, list[str]]:
    """Thirty pairs with up to three references each, punctuation, capitals and clitics in them."""
    found = {}
    for i in range(30):
        shape, place = SHAPES[i % 5], PLACES[i % 6]
        texts = [f"The {shape} at the {place} isn't there any more.", f"a {shape} has left the {place}, it is gone!"]
        found[f"pair-{i}"] = [*texts, f"there is no {shape}"][: i % 3 + 1]
    return found


def predictions() -> dict[str, str]:
    """Some right, some in part, one in other words, one that is punctuation only."""
    found = {f"pair-{i}": f"the {SHAPES[i % 5]} at the {PLACES[i % 4]} is gone" for i in range(30)}
    return found | {"pair-3": "The car at the bottom left isn't there any more.", "pair-4": "...", "pair-5": "a café"}


QUICK = chosen(without=("meteor",))


@pytest.fixture(scope="module")
def scores() -> Scores:
    kinds = {f"pair-{i}": ("add", "remove")[i % 2] for i in range(0, 30)}
    return score(references(), predictions(), change_types=kinds, bootstrap=200)


def test_every_number_is_the_one_of_pycocoevalcap(scores: Scores) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    theirs = PTBTokenizer().tokenize({pair: [{"caption": c} for c in group] for pair, group in references().items()})
    ours = PTBTokenizer().tokenize({pair: [{"caption": caption}] for pair, caption in predictions().items()})
    answer, group = list(predictions().values()), list(references().values())
    tokens, kind, _ = tokenised([*answer, *(caption for captions in group for caption in captions)])
    assert kind == "ptb"
    assert [[tokens[caption]] for caption in answer] == list(ours.values())
    assert [[tokens[caption] for caption in captions] for captions in group] == list(theirs.values())

    expected: dict[str, tuple[float, list[float]]] = {}
    for n, both in enumerate(zip(*Bleu(4).compute_score(theirs, ours, verbose=0), strict=True), start=1):
        expected[f"BLEU-{n}"] = both
    jar = Meteor()
    expected["METEOR"] = jar.compute_score(theirs, ours)
    jar.meteor_p.stdin.close()
    jar.meteor_p.wait(10)
    expected["ROUGE-L"] = Rouge().compute_score(theirs, ours)
    expected["CIDEr"] = expected["CIDEr-D"] = Cider().compute_score(theirs, ours)
    per_pair = scores.per_pair()
    for name, (corpus, each) in expected.items():
        assert scores.scores[name] == pytest.approx(corpus, rel=1e-12), name
        np.testing.assert_allclose([per_pair[pair][name] for pair in ours], each, rtol=1e-12, atol=1e-15)
    assert set(expected) | {"CIDEr-plain"} == set(CLASSIC)


def test_plain_cider_has_neither_clipping_nor_a_length_penalty(scores: Scores) -> None:
    repeated = {pair: f"{caption} {caption}" for pair, caption in predictions().items()}
    once, twice = score_all(References(references()), [predictions(), repeated], protocol("plain"), QUICK)
    assert once.scores["CIDEr-plain"] > once.scores["CIDEr"]
    lost = {name: 1 - twice.scores[name] / once.scores[name] for name in ("CIDEr", "CIDEr-plain")}
    assert lost["CIDEr-plain"] < lost["CIDEr"]


def test_groups_are_corpora_of_their_own(scores: Scores) -> None:
    chosen = [f"pair-{i}" for i in range(0, 30, 2)]
    alone = score({p: references()[p] for p in chosen}, {p: predictions()[p] for p in chosen}, meteor=False)
    pairs, found = scores.groups["add"]
    assert pairs == 15
    assert {name: found[name] for name in alone.scores} == pytest.approx(dict(alone.scores), rel=1e-12)


def test_intervals_hold_the_score_and_follow_the_seed(scores: Scores) -> None:
    assert set(scores.intervals) == set(CLASSIC)
    for name, (low, high) in scores.intervals.items():
        assert low < scores.scores[name] < high, name
    assert intervals(scores.rows, 200, seed=0) == scores.intervals != intervals(scores.rows, 200, seed=1)


def test_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        rows = np.column_stack([np.ones(80), rng.normal(0.5, 0.1, 80)])
        low, high = intervals({metric("rouge"): rows}, 300, seed=trial)["ROUGE-L"]
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 199


def test_paired_test_finds_a_difference_and_only_a_real_one(scores: Scores) -> None:
    worse = {pair: "a dog" if int(pair[5:]) % 3 == 0 else caption for pair, caption in predictions().items()}
    other = score_all(References(references()), [worse], protocol("plain"), QUICK)[0]
    ours = score_all(References(references()), [predictions()], protocol("plain"), QUICK)[0]
    found = compare(ours, other, 500)
    assert found["CIDEr"].difference == pytest.approx(ours.scores["CIDEr"] - other.scores["CIDEr"])
    assert found["CIDEr"].difference > 0
    assert found["CIDEr"].p < 0.02
    assert compare(ours, ours, 500)["CIDEr"].p == 1


def test_numbers_of_different_rules_are_not_compared(scores: Scores) -> None:
    joined = score(references(), predictions(), "spot-the-diff-joined", meteor=False)
    with pytest.raises(UserError, match=r"different protocol \(plain and spot-the-diff-joined\) cannot be compared"):
        compare(scores, joined)
    fewer = score(references(), {"pair-1": "a car"}, allow_missing=True, meteor=False)
    with pytest.raises(UserError, match="different ids"):
        compare(scores, fewer)


def test_unknown_and_missing_ids() -> None:
    with pytest.raises(UserError, match="id 'nobody' not among the references"):
        score(references(), predictions() | {"nobody": "a cat"}, meteor=False)
    some = {pair: caption for pair, caption in predictions().items() if pair not in ("pair-7", "pair-8")}
    with pytest.raises(UserError, match=r"no caption for id 'pair-7' \(and 1 more\); --allow-missing"):
        score(references(), some, meteor=False)
    found = score(references(), some, allow_missing=True, meteor=False)
    assert found.missing == ("pair-7", "pair-8")
    assert len(found.ids) == 28
    assert found.notes == ("2 of 30 pairs have no caption and are left out: id 'pair-7' (and 1 more)",)
    with pytest.raises(UserError, match="no pair to score"):
        score(references(), {}, allow_missing=True, meteor=False)


def test_result_is_plain_json(scores: Scores) -> None:
    back = json.loads(json.dumps(scores.as_json(), allow_nan=False))
    assert back["pairs"] == 30
    assert back["scores"] == scores.scores
    assert set(back["intervals"]) == set(CLASSIC)
    assert back["per_pair"]["pair-3"]["METEOR"] == 1


def test_without_java_the_rest_is_computed_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    found = score(references(), predictions())
    assert found.tokenisation == "plain"
    assert "METEOR" not in found.scores
    assert found.as_json()["scores"]["METEOR"] is None
    assert found.scores["CIDEr"] > 0.3
    assert len(found.notes) == 1
    assert "Java is not installed" in found.notes[0]
    assert "METEOR is left out" in found.notes[0]
    assert "not comparable" in found.notes[0]


def test_java_that_fails_or_hangs_is_one_line_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with JavaProgram(["-cp", "nowhere", "Nothing"], []) as program, pytest.raises(JavaUnavailable, match="code 1: "):
        program.answers(30)
    with meteor_program(["a b"], [["a b"]]) as program, pytest.raises(JavaUnavailable, match="within 0 s"):
        program.answers(0.01)
    assert program.process.poll() is not None


def test_tokens_do_not_depend_on_neighbours() -> None:
    odd = ["it ended etc.", "two\u2028lines\rhere\x0b", "", "...", "x", "caf\u00e9 \u201cquoted\u201d 1 1/2", "NEXT"]
    together = ptb_tokens(odd)
    assert together == ptb_tokens(odd[::-1])[::-1]
    assert together[1:5] == ["two lines here", "", "", "x"]
    assert together[5].startswith("caf\u00e9 quoted")


def test_plain_tokens_are_near_the_real_ones() -> None:
    assert plain_tokens("The car isn't there, it's GONE!") == "the car is n't there it 's gone"


def test_best_constant_is_the_best_of_all() -> None:
    captions = list(dict.fromkeys(caption for group in references().values() for caption in group))
    tokens, _, _ = tokenised(captions)
    groups = [[tokens[caption] for caption in group] for group in references().values()]
    reached = {caption: cider_rows([tokens[caption]] * 30, groups)[:, 1].mean() for caption in captions}
    assert reached[best_constant(references())] == pytest.approx(max(reached.values()), rel=1e-12)


def test_best_constant_is_the_same_in_every_process() -> None:
    """Python hashes words differently in each; of many captions that are as frequent, the same must be tried."""
    program = (
        "from onediff.evaluation.baselines import best_constant\n"
        "pairs = {str(i): [f'the w{i * k % 701} {k} cube v{i * 7 % 97} is gone' for k in (1, 2, 3)] for i in range(400)}\n"
        "print(best_constant(pairs))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PATH": "", "JAVA_HOME": ""},  # plain tokens: no start of Java
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_floors_are_blind_systems_on_the_same_pairs() -> None:
    found = baselines(references())
    assert found.caption in {caption for group in references().values() for caption in group}
    seeing = score(references(), predictions(), meteor=False)
    assert seeing.scores["CIDEr"] > found.constant.scores["CIDEr"]
    assert found.shuffled.ids == found.constant.ids == seeing.ids
    assert baselines(references()).shuffled.scores == found.shuffled.scores
    assert found.shuffled.scores["CIDEr"] < 5


def test_sums_of_rows_are_what_is_scored(scores: Scores) -> None:
    doubled = scores_of({one: (part * 2).sum(0) for one, part in scores.rows.items()})
    assert {name: float(value) for name, value in doubled.items()} == pytest.approx(dict(scores.scores), rel=1e-6)


def test_scoring_never_imports_torch() -> None:
    code = (
        "import sys; from onediff.evaluation.scoring import score; import onediff.cli.score, onediff.evaluation.report\n"
        "score({'a': ['b c'], 'd': ['e']}, {'a': 'b', 'd': 'e'}, meteor=False)\n"
        "assert not {'torch', 'transformers', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_cider_of_one_pair_or_of_like_references_is_explained_and_not_zero() -> None:
    alone = score({"a": ["the cube is gone"]}, {"a": "the cube is gone"}, meteor=False, bootstrap=10)
    assert "CIDEr" not in alone.scores
    assert alone.as_json()["scores"]["CIDEr"] is None
    assert alone.notes == (
        "CIDEr is undefined here: it weighs words by how few pairs have them, and there is one pair",
    )
    given = {str(i): ["nothing has changed"] if i < 3 else [f"cube {i} is gone"] for i in range(6)}
    kinds = {pair: "none" if int(pair) < 3 else "remove" for pair in given}
    found = score(given, dict.fromkeys(given, "nothing has changed"), change_types=kinds, meteor=False)
    assert found.scores["CIDEr"] > 0
    assert "CIDEr" not in found.groups["none"][1]
    assert found.notes == (
        "CIDEr of none is left blank: its references do not differ from pair to pair, "
        "and CIDEr weighs words by how few pairs have them",
    )
    assert found.groups["none"][1]["BLEU-2"] == pytest.approx(1)
    assert found.groups["remove"][1]["CIDEr"] == 0


@pytest.mark.long
def test_meteor_is_bounded_on_a_caption_of_many_thousand_words() -> None:
    endless = " ".join(["the", "cube", "is", "gone", "and"] * 3000)
    found = score({"a": ["the cube is gone"], "b": ["a dog"]}, {"a": endless, "b": "a dog"})
    assert 0 < found.scores["METEOR"] < 1
    assert found.notes == (f"METEOR uses only the first {LONGEST} words of 1 caption",)


def test_an_unknown_metric_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"^no metric 'rogue' \(did you mean 'rouge'\?\)$"):
        chosen(["rogue"])


@pytest.mark.parametrize("name", [name for one in chosen() for name in one.scores])
def test_each_score_is_documented(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    assert f"`{name}`" in page or name.endswith(" right") or name.startswith("BLEU")
