"""Rendered scenes: the same for the same seed, and their captions true of the images and of nothing else."""

import re
from collections import Counter

import numpy as np
import pytest

from data_prep.scenes import DistractorsConfig, ScenesConfig, render_pair, render_single
from data_prep.scenes.things import COLOURS, MATERIALS, PLACES, SHAPES, SIZES
from onediff.evaluation.items.grammar import read

QUIET = DistractorsConfig(probability=0)
WORDS = "|".join
NAME = rf"(?:({WORDS(SIZES)}) )?({WORDS(COLOURS)}) (?:({WORDS(MATERIALS)}) )?({WORDS(SHAPES)})\b"


@pytest.fixture(scope="module")
def quiet_pairs():
    config = ScenesConfig(distractors=QUIET, wordings=5)
    return [render_pair(config, 3, index) for index in range(400)]


def called(match, things):
    """The objects among `things` that a name found by NAME fits."""
    keys = ("size", "colour", "material", "shape")
    return [t for t in things if all(word is None or t[key] == word for key, word in zip(keys, match, strict=True))]


def by_number(things):
    return {thing["number"]: thing for thing in things}


def test_pairs_follow_from_seed_and_index_alone():
    config = ScenesConfig()
    one, again = render_pair(config, 5, 9), render_pair(config, 5, 9)
    assert np.array_equal(one.before, again.before)
    assert np.array_equal(one.after, again.after)
    assert one[2:] == again[2:]
    assert not np.array_equal(one.before, render_pair(config, 5, 10).before)
    assert not np.array_equal(one.before, render_pair(config, 6, 9).before)
    single, same = render_single(config, 5, 9), render_single(config, 5, 9)
    assert np.array_equal(single.image, same.image)
    assert single.captions == same.captions


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 96)])
def test_images_have_the_size_asked_for(width, height):
    pair = render_pair(ScenesConfig(width=width, height=height), 0, 0)
    assert pair.before.shape == pair.after.shape == (height, width, 3)
    assert pair.before.dtype == np.uint8


def test_every_change_type_occurs_as_often_as_its_weight_says(quiet_pairs):
    counts = Counter(pair.change_type for pair in quiet_pairs)
    assert set(counts) == set(ScenesConfig().changes)
    assert counts["none"] > 0.8 * 1.5 / 9.5 * len(quiet_pairs) * 0.8
    only = ScenesConfig(changes={"swap": 1.0})
    assert {render_pair(only, 0, index).change_type for index in range(20)} == {"swap"}


def test_pixels_differ_only_inside_the_boxes_of_what_changed(quiet_pairs):
    for pair in quiet_pairs:
        touched = np.zeros(pair.before.shape[:2], bool)
        for change in pair.meta["changes"]:
            for image in ("before", "after"):
                for number in change[image]:
                    left, top, right, bottom = by_number(pair.meta[image])[number]["box"]
                    assert not np.array_equal(*(p[top:bottom, left:right] for p in (pair.before, pair.after)))
                    touched[top:bottom, left:right] = True
        differ = (pair.before != pair.after).any(-1)
        assert not (differ & ~touched).any(), pair.captions[0]
        assert differ.any() == (pair.change_type != "none")


def test_meta_describes_the_change_that_the_type_names(quiet_pairs):
    attributes = ("size", "colour", "material", "shape")
    differing = {"move": {"place"}, "recolour": {"colour"}, "resize": {"size"}}
    for pair in quiet_pairs:
        before, after = by_number(pair.meta["before"]), by_number(pair.meta["after"])
        for change in pair.meta["changes"]:
            if change["type"] == "add":
                assert (change["before"], set(change["after"]) - set(before)) == ([], set(change["after"]))
            elif change["type"] == "remove":
                assert not set(change["before"]) & set(after)
            elif change["type"] == "replace":
                (old,), (new,) = change["before"], change["after"]
                assert before[old]["place"] == after[new]["place"]
                assert before[old]["shape"] != after[new]["shape"]
            elif change["type"] == "swap":
                one, two = change["before"]
                assert (before[one]["place"], before[two]["place"]) == (after[two]["place"], after[one]["place"])
            else:
                (number,) = change["before"]
                keys = {key for key in (*attributes, "place") if before[number][key] != after[number][key]}
                assert keys == differing[change["type"]]
        changed = {number for change in pair.meta["changes"] for number in change["before"] + change["after"]}
        for number in set(before) - changed:
            assert all(before[number][key] == after[number][key] for key in (*attributes, "place", "box"))


def test_names_in_captions_fit_exactly_one_object_of_their_image(quiet_pairs):
    for pair in quiet_pairs:
        expected = {(change["type"], n) for change in pair.meta["changes"] for n in change["before"]}
        old = {number for _, number in expected}
        new = {n for change in pair.meta["changes"] if change["type"] in ("add", "replace") for n in change["after"]}
        for caption in pair.captions:
            named = {"before": set(), "after": set()}
            for article, *match in re.findall(rf"\b(the|an?) {NAME}", caption):
                image = "before" if article == "the" else "after"
                fitting = called([word or None for word in match], pair.meta[image])
                assert len(fitting) == 1, caption
                named[image].add(fitting[0]["number"])
            assert named == {"before": old, "after": new}, caption


def test_places_and_new_attributes_in_captions_are_true(quiet_pairs):
    for pair in quiet_pairs:
        if len(pair.meta["changes"]) != 1 or pair.change_type == "swap":
            continue
        before, after = by_number(pair.meta["before"]), by_number(pair.meta["after"])
        (change,) = pair.meta["changes"]
        old = [before[number] for number in change["before"]]
        new = [after[number] for number in change["after"]]
        places = [thing["place"] for thing in old + new]
        for caption in pair.captions:
            # Longest names first, or "top left" would read as "top".
            found = re.findall(rf"\bthe ({WORDS(sorted(PLACES, key=len, reverse=True))})\b", caption)
            assert found == (places if pair.change_type == "move" else places[:1]), caption
            if pair.change_type == "recolour":
                assert caption.endswith(new[0]["colour"])
            if pair.change_type == "resize":
                assert bool(re.search("larger|grown", caption)) == (new[0]["size"] == "large")


def test_no_change_is_said_in_so_many_words(quiet_pairs):
    said = {caption for pair in quiet_pairs if pair.change_type == "none" for caption in pair.captions}
    assert "nothing has changed" in said
    assert len(said) == 5
    assert not any(re.search(NAME, caption) for caption in said)


def test_objects_are_distinguishable_and_never_share_a_place(quiet_pairs):
    for pair in quiet_pairs:
        for things in (pair.meta["before"], pair.meta["after"]):
            looks = {tuple(thing[key] for key in ("size", "colour", "material", "shape")) for thing in things}
            assert len(looks) == len({thing["place"] for thing in things}) == len(things)


def test_single_captions_list_every_object_in_full_and_nothing_else():
    config = ScenesConfig(wordings=5)
    for index in range(100):
        single = render_single(config, 4, index)
        objects = {(t["size"], t["colour"], t["material"], t["shape"], t["place"]) for t in single.meta["objects"]}
        places = WORDS(sorted(PLACES, key=len, reverse=True))
        for caption in single.captions:
            told = [
                (*look, place) for place, *look in re.findall(rf"\b(?:at|in|on) the ({places}) an? {NAME}\b", caption)
            ]
            assert len(told) == len(objects)
            assert set(told) == objects


def test_an_object_shows_its_own_colour():
    config = ScenesConfig(distractors=QUIET, width=96, height=96)
    for index in range(30):
        single = render_single(config, 8, index)
        for thing in single.meta["objects"]:
            left, top, right, bottom = thing["box"]
            # The box extends further on the side of the shadow, so look a little before its middle.
            x, y = round(left + 0.42 * (right - left)), round(top + 0.55 * (bottom - top))
            seen = single.image[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).astype(float).mean(0)
            shades = {name: np.array(rgb, float) / np.linalg.norm(rgb) for name, rgb in COLOURS.items()}
            closest = max(shades, key=lambda name: shades[name] @ seen)
            assert closest == thing["colour"], (index, thing)


def test_distractors_disturb_unchanged_pairs_too_and_say_so():
    config = ScenesConfig(changes={"none": 1.0}, distractors=DistractorsConfig(probability=1))
    applied = render_pair(config, 1, 0)
    assert set(applied.meta["distractors"]) == {"viewpoint", "light", "noise", "jpeg"}
    assert not np.array_equal(applied.before, applied.after)
    half = [render_pair(ScenesConfig(), 1, index).meta["distractors"] for index in range(300)]
    for name in ("viewpoint", "light", "noise", "jpeg"):
        assert 0.4 < sum(name in one for one in half) / 300 < 0.6


def test_several_changes_are_told_in_reading_order_of_their_places():
    config = ScenesConfig(changes={"several": 1.0}, wordings=5)
    for index in range(60):
        pair = render_pair(config, 4, index)
        before, after = by_number(pair.meta["before"]), by_number(pair.meta["after"])

        def place(change, before=before, after=after):
            first = before[change["before"][0]] if change["before"] else after[change["after"][0]]
            return PLACES.index(first["place"])

        told = [change["type"] for change in sorted(pair.meta["changes"], key=place)]
        assert [[item.type for item in read(caption).items] for caption in pair.captions] == [told] * len(pair.captions)


def test_objects_that_swap_are_named_in_reading_order_of_their_places():
    config = ScenesConfig(changes={"swap": 1.0}, wordings=5)
    for index in range(40):
        pair = render_pair(config, 4, index)
        for caption in pair.captions:
            found = [called(match.groups(), pair.meta["before"]) for match in re.finditer(NAME, caption)]
            (first,), (second,) = found
            assert PLACES.index(first["place"]) < PLACES.index(second["place"]), caption


def test_full_names_have_all_four_attributes():
    config = ScenesConfig(names="full", changes={"remove": 1.0})
    for index in range(20):
        (found,) = re.findall(NAME, render_pair(config, 2, index).captions[0])
        assert all(found)


def test_alike_scenes_have_neighbours_of_one_colour():
    def share(alike: float) -> float:
        config = ScenesConfig(min_objects=3, max_objects=3, alike=alike)
        scenes = [render_single(config, 5, index).meta["objects"] for index in range(60)]
        return float(np.mean([len({thing["colour"] for thing in scene}) < len(scene) for scene in scenes]))

    assert share(0.0) < 0.6 < 0.8 < share(0.7)
    for kind in ("add", "replace"):
        config = ScenesConfig(min_objects=2, max_objects=2, changes={kind: 1}, alike=1.0)
        for index in range(20):
            assert len({thing["colour"] for thing in render_pair(config, 5, index).meta["after"]}) == 1, kind


def test_only_size_or_material_tells_twins_apart():
    def share(twins: float) -> float:
        config = ScenesConfig(min_objects=2, max_objects=2, changes={"remove": 1}, twins=twins)
        captions = [render_pair(config, 5, index).captions[0] for index in range(60)]
        return float(
            np.mean([bool(size or material) for size, _, material, _ in (re.findall(NAME, c)[0] for c in captions)])
        )

    assert share(0.0) < 0.2 < 0.7 < share(0.9)


def test_wordings_bound_the_captions_of_a_sample():
    for wordings in (1, 3, 5):
        pairs = [render_pair(ScenesConfig(wordings=wordings), 2, index) for index in range(40)]
        assert max(len(pair.captions) for pair in pairs) == wordings
        assert all(len(set(pair.captions)) == len(pair.captions) for pair in pairs)


def test_photographs_can_lie_behind_the_objects():
    pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    pair = render_pair(ScenesConfig(backgrounds={"photograph": 1.0}), 0, 0)
    assert pair.meta["background"] == "photograph"
    assert pair.before.std() > 5


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"min_objects": 5, "max_objects": 3}, "min_objects 5 is above max_objects 3"),
        ({"changes": {"add": 0.0}}, "no weight is above zero"),
        ({"changes": {"explode": 1.0}}, "explode"),
    ],
)
def test_impossible_configurations_are_refused(values, fault):
    with pytest.raises(ValueError, match=fault):
        ScenesConfig.model_validate(values)
