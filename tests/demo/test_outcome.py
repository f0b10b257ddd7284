"""The end of the demo: how many captions are right, and which are the worst and the best."""

import json

import pytest
from PIL import Image

from onediff.data.heldout import HeldOut
from onediff.demo.outcome import outcome
from tests.support.small_run import render


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("scenes"), pairs=50, singles=4)


def test_the_demo_ends_with_the_captions_that_are_right_and_a_sheet_of_those_that_are_not(data, tmp_path):
    heldout = HeldOut.open(data / "pairs" / "test")
    captions = {pair: references[0] for pair, references in heldout.references.items()}
    changed = [pair for pair, kind in heldout.change_types.items() if kind != "none"]
    wrong = {changed[0]: "nothing has changed", changed[1]: "the moon has fallen"}
    folder = tmp_path / "evaluation" / "pairs-test-two-5"
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text('{"scores": {"change type": 0.91}}')
    records = [json.dumps({"id": pair, "caption": caption}) for pair, caption in (captions | wrong).items()]
    (folder / "predictions.jsonl").write_text("\n".join(records))
    told = "\n".join(outcome(tmp_path, data / "pairs" / "test"))
    assert f"Captions right: {100 * (1 - 2 / len(captions)):.1f} % of {len(captions)} held-out pairs" in told
    assert (
        "changed captions right " in told
        and "missed changes " in told
        and "change type right 91.0 %" in told
        and "shape " in told
        and "place " in told
    )
    kinds = list(heldout.change_types.values())
    shares = {kind: 1 - sum(heldout.change_types[pair] == kind for pair in wrong) / kinds.count(kind) for kind in kinds}
    kind = min(shares, key=lambda kind: (shares[kind], kind))
    assert f"hardest: {kind} {100 * shares[kind]:.1f} % of {kinds.count(kind)}, " in told
    sheet = Image.open(folder / "worst-and-best.png")
    assert sheet.width > 2 * 2 * 126
