"""A model says how sure it is, and when it is shown what it was not trained on."""

from __future__ import annotations

from io import BytesIO
from itertools import islice

import numpy as np
import pytest
from PIL import Image
from streams import png, write_set

from onediff.errors import UserError
from onediff.evaluation.confidence import FILE, Knowledge
from onediff.evaluation.confidence.calibration import Calibration, calibration_error, reliability
from onediff.evaluation.confidence.familiar import Familiar
from onediff.evaluation.confidence.measure import images_of
from onediff.evaluation.confidence.refusal import ClaimedChanges, RefusalLimit


def test_of_new_images_of_the_same_kind_few_are_unfamiliar_and_of_others_all():
    """Fewer training images than features, and features that hang together: where a plain covariance has no inverse."""
    draw = np.random.default_rng(0)
    mixing = draw.normal(size=(96, 96)).astype(np.float32)

    def features(*shape: int) -> np.ndarray:
        return draw.normal(size=(*shape, 96)).astype(np.float32) @ mixing

    familiar = Familiar.of(features(80), features(300, 2))
    assert np.mean(familiar.distances(features(1000, 2)).max(1) > familiar.limit) < 0.05
    assert (familiar.distances(features(100) + 60) > familiar.limit).all()


def test_confidence_is_the_share_of_right_captions():
    draw = np.random.default_rng(1)
    values = draw.uniform(-2, 0, 2000)
    chance = np.exp(values)
    right = draw.random(2000) < chance
    found = Calibration.of(values, right)
    told = found.confidence(np.linspace(-1.9, -0.1, 20))
    assert (np.diff(told) >= 0).all() and abs(told - np.exp(np.linspace(-1.9, -0.1, 20))).max() < 0.15
    bins = reliability(values, right)
    assert bins[:, 2].sum() == 2000 and calibration_error(bins) < 0.05
    # A model that is sure of everything is not believed: confidence is what was right.
    careless = reliability(-draw.uniform(0, 0.01, 2000), right)
    assert abs(careless[:, 0] - right.mean()).max() < 0.12


def test_knowledge_is_kept_whole_and_a_damaged_file_is_one_line(tmp_path):
    draw = np.random.default_rng(2)
    familiar = Familiar.of(
        draw.normal(size=(50, 8)).astype(np.float32), draw.normal(size=(40, 2, 8)).astype(np.float32)
    )
    values = draw.uniform(-2, 0, 100)
    right = draw.random(100) < np.exp(values)
    refusal = RefusalLimit.of(("nothing has changed", "there is no change"), ClaimedChanges(-values, ~right, right))
    assert refusal is not None
    calibration, bins = Calibration.of(values, right), reliability(values, right)
    kept = Knowledge(familiar, calibration, bins, "rendered scenes", "100 pairs", refusal)
    kept.write(tmp_path)
    again = Knowledge.read(tmp_path)
    assert again is not None and again.as_json() == kept.as_json()
    near, far = np.zeros((2, 8), np.float32), np.full((2, 8), 50, np.float32)
    assert again.judged("a", -0.1, near) == kept.judged("a", -0.1, near) and 0 < again.judged("a", -0.1, near)[1] < 1
    assert again.judged("a", -0.1, np.stack([near[0], far[0]])).warning == (
        "the image after is unlike the model's training images: rendered scenes"
    )
    refused = again.judged("a cube is gone", -0.1, near, nothing=refusal.limit + 1)
    assert (refused.caption, refused.instead_of) == ("nothing has changed", "a cube is gone")
    assert again.judged("a", -0.1, far).as_json().keys() == {"caption", "warning"}
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:200])
    with pytest.raises(UserError, match=r"confidence.npz: cannot be read; write it again with `onediff calibrate"):
        Knowledge.read(tmp_path)


@pytest.mark.parametrize(("kind", "images"), [("pair", 2), ("single", 1)])
def test_training_images_come_from_the_whole_split(tmp_path, kind, images):
    split = write_set(tmp_path, [30, 0, 45, 15], kind)
    number = {Image.open(BytesIO(png(seed))).tobytes(): seed // images for seed in range(90 * images)}
    seen = [number[image.tobytes()] for image in islice(images_of(split, 60), 60)]
    assert len(set(seen)) == 60 and max(np.diff([-1, *sorted(seen), 90])) <= 2
    everything = [image.tobytes() for image in islice(images_of(split, 1000), 1000)]
    assert len(set(everything)) == len(everything) == 90 * images


def test_refusing_spares_right_captions_and_is_measured_on_other_pairs():
    """Where nothing has changed, the model finds that likelier; a few pairs overlap."""
    draw = np.random.default_rng(3)
    unchanged, told = np.arange(1000) < 500, draw.random(1000) < 0.8
    nothing = np.where(told, draw.normal(np.where(unchanged, -3.0, -9.0), 1.5), np.nan)
    right = np.where(unchanged, ~told, draw.random(1000) < 0.7)
    refusal = RefusalLimit.of(("nothing has changed",), ClaimedChanges(nothing, unchanged, right))
    assert refusal is not None and -8 < refusal.limit < -4 and refusal.share > 0.9
    tally = refusal.tally
    assert (tally.pairs, tally.unchanged) == (1000, 500) and tally.false_alarms[0] == (unchanged & told).sum()
    assert tally.false_alarms[1] < 0.1 * tally.false_alarms[0]
    assert tally.right[1] > tally.right[0] + 0.85 * (tally.false_alarms[0] - tally.false_alarms[1])
    # A probability that says nothing about the change is not used, nor is one measured on a handful of pairs.
    tells_nothing = ClaimedChanges(np.where(told, 0.0, np.nan), unchanged, right)
    assert RefusalLimit.of(("nothing has changed",), tells_nothing) is None
    few = ClaimedChanges(nothing[495:520], unchanged[495:520], right[495:520])
    assert RefusalLimit.of(("nothing has changed",), few) is None
