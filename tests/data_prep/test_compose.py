"""Composed pairs: the change can be recovered from masks and pixels, and the captions tell it and nothing else."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage", reason="the photographs come with scikit-image")

from coco_masks import decode_mask

from data_prep.compose import ComposeConfig, Library, compose_pair, find_backgrounds, find_cutouts
from data_prep.compose.library import Background, Cutout, deal, name_of
from data_prep.compose.masks import encode_mask
from data_prep.scenes.config import DistractorsConfig
from data_prep.scenes.things import COLOURS, PLACES
from onediff.errors import UserError

QUIET = DistractorsConfig(probability=0)
OPENCV = Path("/usr/share/doc/opencv-doc/examples/data")
STAMPS = Path("/usr/share/tuxpaint/stamps")
PLACE = "|".join(sorted(PLACES, key=len, reverse=True))
NUMBER = 120


@pytest.fixture(scope="module")
def library():
    return Library(tuple(find_backgrounds([]).backgrounds), tuple(find_cutouts([]).cutouts))


@pytest.fixture(scope="module")
def quiet_pairs(library):
    config = ComposeConfig(distractors=QUIET, wordings=5)
    return [compose_pair(config, library, 1, index) for index in range(NUMBER)]


def seen(pair, image):
    """The pieces of one image by number, with their masks decoded."""
    return {piece["number"]: {**piece, "mask": decode_mask(piece["mask"])} for piece in pair.meta[image]}


def hue(pixels):
    """Mean colour of `pixels` [n, 3] as a unit vector."""
    mean = pixels.astype(float).mean(0)
    return mean / np.linalg.norm(mean)


def place_of(mask):
    """The cell of a 3 x 3 grid that the middle of `mask` lies in."""
    rows, columns = np.nonzero(mask)
    across = (columns.min() + columns.max() + 1) / 2 / mask.shape[1]
    down = (rows.min() + rows.max() + 1) / 2 / mask.shape[0]
    cells = [sum(share > edge for edge in (0.345, 0.655)) for share in (down, across)]
    return PLACES[3 * cells[0] + cells[1]]


def recovered(pair):
    """The type of the change, found from the masks and the pixels alone."""
    before, after = seen(pair, "before"), seen(pair, "after")
    differs = np.abs(pair.before.astype(int) - pair.after).max(-1) > 2
    if not differs.any():
        return "none"
    known = np.zeros_like(differs)
    for piece in [*before.values(), *after.values()]:
        left, top, right, bottom = piece["box"]
        known[top:bottom, left:right] = True
    if (differs & ~known).any():
        return changed_on_the_whole(before, after, differs)
    gone, new = set(before) - set(after), set(after) - set(before)
    if gone or new:
        return {(0, 1): "add", (1, 0): "remove", (1, 1): "replace"}[len(gone), len(new)]
    number = max(before, key=lambda n: differs[before[n]["mask"] | after[n]["mask"]].sum())
    return changed_piece(pair, before[number]["mask"], after[number]["mask"])


def changed_on_the_whole(before, after, differs):
    """Crop, brighten or blur, for a change that reaches beyond the pieces."""
    if set(before) != set(after) or not all(similar(before[n]["mask"], after[n]["mask"]) for n in before):
        return "crop"
    cores = np.any([eroded(piece["mask"]) for piece in before.values()], 0)
    return "brighten" if differs[cores].mean() > 0.3 else "blur"


def changed_piece(pair, old, new):
    """What happened to the piece with the mask `old` before and `new` after."""
    if place_of(old) != place_of(new):
        return "move"
    if not 0.65 < new.sum() / old.sum() < 1.55:
        return "resize"
    if np.abs(hue(pair.before[old]) - hue(pair.after[new])).max() > 0.12:
        return "recolour"
    was, now = patch(pair.before, old), patch(pair.after, new)
    return "flip" if np.abs(was[:, ::-1] - now).mean() < np.abs(was - now).mean() else "blur"


def patch(image, mask):
    """What `mask` shows of `image`, without what surrounds it, as [48, 48, 3]."""
    rows, columns = np.nonzero(mask)
    alone = Image.fromarray(np.where(mask[..., None], image, 0).astype(np.uint8))
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return np.asarray(alone.resize((48, 48), Image.Resampling.BILINEAR, box=box), float)


def eroded(mask):
    """`mask` less three pixels at its edges, which blend with what lies behind."""
    for _ in range(3):
        mask = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
    return mask


def similar(one, other):
    """Whether two masks are the same but for what a neighbour covers."""
    return (one & other).sum() > 0.97 * (one | other).sum()


def test_the_change_is_recovered_from_masks_and_pixels(quiet_pairs):
    assert {pair.change_type for pair in quiet_pairs} == set(ComposeConfig().changes)
    wrong = [(i, pair.change_type, recovered(pair)) for i, pair in enumerate(quiet_pairs)]
    assert not [case for case in wrong if case[1] != case[2]]


def test_pixels_differ_only_inside_the_boxes_of_what_changed(quiet_pairs):
    for pair in quiet_pairs:
        if pair.change_type != "none" and not any(c["before"] + c["after"] for c in pair.meta["changes"]):
            continue
        touched = np.zeros(pair.before.shape[:2], bool)
        for change in pair.meta["changes"]:
            for image in ("before", "after"):
                for number in change[image]:
                    left, top, right, bottom = seen(pair, image)[number]["box"]
                    touched[top:bottom, left:right] = True
        assert not ((pair.before != pair.after).any(-1) & ~touched).any(), pair.captions[0]


def test_masks_lie_inside_boxes_and_never_overlap(quiet_pairs):
    for pair in quiet_pairs[:80]:
        for image in ("before", "after"):
            pieces = seen(pair, image).values()
            assert np.sum([piece["mask"] for piece in pieces], 0).max() <= 1 if pieces else True
            for piece in pieces:
                left, top, right, bottom = piece["box"]
                assert piece["mask"].any()
                assert piece["mask"][top:bottom, left:right].sum() == piece["mask"].sum()


def test_captions_name_what_changed_where_it_is_and_nothing_else(quiet_pairs):
    for pair in quiet_pairs:
        before, after = seen(pair, "before"), seen(pair, "after")
        changes = pair.meta["changes"]
        old = [before[number] for change in changes for number in change["before"]]
        new = [after[number] for change in changes for number in change["after"]]
        if pair.change_type in ("move", "recolour", "resize", "flip", "blur"):
            new_names = set()
        else:
            new_names = {piece["name"] for piece in new}
        for caption in pair.captions:
            named = set(re.findall(r"(?:the|an?) (\w+ (?:cube|sphere|cylinder|cone))\b", caption))
            assert named == {piece["name"] for piece in old} | new_names, caption
            places = re.findall(rf"\bthe (?:former )?({PLACE})\b(?! part)", caption)
            told = [place_of(piece["mask"]) for piece in old + new]
            if pair.change_type == "move":
                assert places == told, caption
            elif old or new:
                assert places == told[:1], caption
            if pair.change_type == "resize":
                is_larger = new[0]["mask"].sum() > old[0]["mask"].sum()
                assert bool(re.search("larger|grown", caption)) == is_larger
            if pair.change_type == "brighten":
                assert bool(re.search("bright", caption)) == (pair.after.mean() > pair.before.mean())


def test_a_recoloured_piece_shows_the_colour_that_is_told(quiet_pairs):
    shades = {name: hue(np.array([rgb])) for name, rgb in COLOURS.items() if name != "white"}
    config = ComposeConfig(distractors=QUIET)
    assert config.match < 0.3
    for pair in (pair for pair in quiet_pairs if pair.change_type == "recolour"):
        (change,) = pair.meta["changes"]
        mask = seen(pair, "after")[change["after"][0]]["mask"]
        nearest = sorted(shades, key=lambda name: -shades[name] @ hue(pair.after[mask]))[:2]
        assert pair.captions[0].split()[-1] in nearest, pair.captions[0]


def test_a_cropped_image_is_the_told_part_of_the_first(library):
    config = ComposeConfig(distractors=QUIET, changes={"crop": 1.0})
    for index in range(12):
        pair = compose_pair(config, library, 2, index)
        part = pair.meta["changes"][0]["part"]
        errors = {}
        for name, (x, y) in {
            "top left": (0, 0),
            "top right": (2, 0),
            "bottom left": (0, 2),
            "bottom right": (2, 2),
            "middle": (1, 1),
        }.items():
            best = []
            for side in range(140, 174, 3):
                left, top = x * (256 - side) // 2, y * (256 - side) // 2
                piece = Image.fromarray(pair.before[top : top + side, left : left + side]).resize((64, 64))
                whole = Image.fromarray(pair.after).resize((64, 64))
                best.append(np.abs(np.asarray(piece, float) - np.asarray(whole, float)).mean())
            errors[name] = min(best)
        assert min(errors, key=errors.get) == part
        assert all(part in caption for caption in pair.captions)


def test_pairs_follow_from_seed_and_index_alone(library):
    one, same, other = (compose_pair(ComposeConfig(), library, seed, 4) for seed in (7, 7, 8))
    assert np.array_equal(one.before, same.before)
    assert np.array_equal(one.after, same.after)
    assert one[2:] == same[2:]
    assert not np.array_equal(one.before, other.before)


def test_distractors_are_noted_and_never_described(library):
    config = ComposeConfig(changes={"none": 1.0}, distractors=DistractorsConfig(probability=1, viewpoint=0.015))
    pair = compose_pair(config, library, 0, 0)
    assert set(pair.meta["distractors"]) == {"viewpoint", "light", "noise", "jpeg"}
    assert not np.array_equal(pair.before, pair.after)
    assert all(re.search("nothing|no |same|as it was", caption) for caption in pair.captions)


def test_masks_survive_their_run_lengths():
    rng = np.random.default_rng(0)
    masks = [np.zeros((5, 7), bool), np.ones((5, 7), bool), *(rng.random((20, 9, 6)) < 0.5)]
    for mask in masks:
        encoded = encode_mask(mask)
        assert sum(encoded["counts"]) == mask.size
        assert np.array_equal(decode_mask(encoded), mask)


def test_run_lengths_are_those_of_coco():
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(1).random((13, 17)) < 0.4
    encoded = encode_mask(mask)
    assert np.array_equal(coco.decode(coco.frPyObjects(encoded, *encoded["size"])).astype(bool), mask)


@pytest.mark.parametrize(
    ("file", "note", "called"),
    [
        ("apple.png", "A red apple.\nde.utf8=Ein Apfel", ("a", "red apple")),
        ("truck.png", "A dumper. It carries its load in the front.", ("a", "dumper")),
        ("truck_mirror.png", "An ice cream truck!", ("an", "ice cream truck")),
        ("grapes.png", "Some grapes.", None),
        ("long.png", "A thing with quite a few words in it.", None),
        ("old_oak-2.png", None, ("an", "old oak")),
        ("123.png", None, None),
    ],
)
def test_cutouts_are_named_by_their_note_or_their_file(tmp_path, file, note, called):
    if note is not None:
        (tmp_path / file.replace("_mirror.png", ".txt").replace(".png", ".txt")).write_text(note)
    assert name_of(tmp_path / file) == called


def test_folders_are_searched_and_what_does_not_fit_is_counted(tmp_path, library):
    for number, cutout in enumerate(library.cutouts[:10]):
        cutout.open().save(tmp_path / f"thing {chr(97 + number)} {cutout.look[1]}.png")
    Image.new("RGB", (200, 200)).save(tmp_path / "photo.jpg")
    Image.new("RGBA", (20, 20)).save(tmp_path / "tiny.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = find_cutouts([tmp_path])
    assert len(found.cutouts) == 10
    assert all(isinstance(cutout, Cutout) for cutout in found.cutouts)
    assert found.aside == {"not transparent": 1, "too small": 1, "unreadable": 1}
    behind = find_backgrounds([tmp_path])
    assert [background.path for background in behind.backgrounds] == [str(tmp_path / "photo.jpg")]


def test_searches_that_find_nothing_are_clear_errors(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        find_backgrounds([tmp_path / "missing"])
    with pytest.raises(UserError, match="no photograph of at least"):
        find_backgrounds([tmp_path])
    with pytest.raises(UserError, match="only 0 named images"):
        find_cutouts([tmp_path])


def test_a_damaged_photograph_is_named(tmp_path):
    whole = tmp_path / "whole.png"
    find_backgrounds([]).backgrounds[0].open().save(whole)
    (tmp_path / "damaged.png").write_bytes(whole.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"damaged\.png: the photograph is damaged"):
        Background(str(tmp_path / "damaged.png")).open()


def test_backgrounds_are_dealt_without_sharing_a_file():
    backgrounds = [Background(f"photo-{n}.jpg") for n in range(20)] + [Background("film.avi", n) for n in range(8)]
    dealt = deal(backgrounds, {"train": 80, "val": 10, "test": 10})
    files = {split: {background.path for background in chosen} for split, chosen in dealt.items()}
    assert sum(len(chosen) for chosen in dealt.values()) == len(backgrounds)
    assert sum(len(chosen) for chosen in files.values()) == 21
    assert len(files["train"]) > 4 * len(files["val"]) > 0
    with pytest.raises(UserError, match="are too few for 3 splits"):
        deal(backgrounds[:2], {"train": 80, "val": 10, "test": 10})


def test_an_impossible_change_is_a_clear_error(library):
    balls = tuple(cutout for cutout in library.cutouts if cutout.look == ("cylinder", "red", "matte"))
    config = ComposeConfig(changes={"flip": 1.0}, min_objects=1, max_objects=1)
    plain = Library(library.backgrounds[:1], balls)
    with pytest.raises(UserError, match=r"changes\.flip: .*set its weight to 0"):
        compose_pair(config, plain, 0, 0)


@pytest.mark.skipif(not STAMPS.is_dir() or not OPENCV.is_dir(), reason="needs opencv-doc and tuxpaint-stamps-default")
def test_the_debian_packages_work_as_they_install():
    pytest.importorskip("cv2", reason="vtest.avi is read by OpenCV")
    backgrounds = find_backgrounds([OPENCV / "vtest.avi", OPENCV / "fruits.jpg", OPENCV / "home.jpg"])
    cutouts = find_cutouts([STAMPS])
    assert Counter(Path(background.path).name for background in backgrounds.backgrounds)["vtest.avi"] == 32
    assert len(cutouts.cutouts) > 300
    stamps = Library(tuple(backgrounds.backgrounds), tuple(cutouts.cutouts))
    pairs = [compose_pair(ComposeConfig(), stamps, 0, index) for index in range(24)]
    assert len({pair.change_type for pair in pairs}) > 6
    names = {cutout.name for cutout in cutouts.cutouts}
    for pair in pairs:
        for change in pair.meta["changes"]:
            for number in change["before"]:
                (name,) = (piece["name"] for piece in pair.meta["before"] if piece["number"] == number)
                assert name in names
                assert all(name in caption for caption in pair.captions)
