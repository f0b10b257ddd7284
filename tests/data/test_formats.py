"""Image formats: which are read, how others are refused, and pixels that keep their values."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from data_prep.check import check_image
from data_prep.compose.library import Background
from data_prep.embedding import rgb
from data_prep.images import ORIENTATION, Encoding, plain_size, prepare
from onediff.data.formats import PHOTOMETRIC, WHITE_IS_ZERO, open_image
from onediff.data.images import open_upright, opened
from onediff.data.sample import BadSample
from onediff.evaluation.report.images import opened_small
from onediff.tracking.table import opened as logged

HOUSE = Path(__file__).parents[2]


def photograph(size: tuple[int, int] = (320, 240)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 2}])
def test_half_a_jpeg_with_an_end_mark_is_noticed_by_every_check(options) -> None:
    whole = encoded(photograph(), "JPEG", quality=90, **options)
    half = len(whole) // 2
    for broken in (whole[:half] + b"\xff\xd9", whole[:half] + bytes(2000) + whole[half + 2000 :]):
        with pytest.raises(BadSample, match="Corrupt JPEG data"):
            prepare(broken, Encoding(decode=True))
        with pytest.raises(BadSample, match="Corrupt JPEG data"):
            prepare(broken, Encoding(max_side=64))
        with pytest.raises(BadSample, match="'before' is incomplete: Corrupt JPEG data"):
            check_image("before", broken, pixels=True)
    assert prepare(whole, Encoding(decode=True))[0] == whole
    padded = whole[:-2] + b"\0\0\0" + whole[-2:]  # as some cameras write
    assert prepare(padded, Encoding(decode=True))[0] == padded


@pytest.mark.parametrize(
    ("levels", "mode"),
    [
        (np.linspace(0, 1, 256, dtype=np.float32), "F"),
        (np.arange(256, dtype=np.float32), "F"),
        (np.arange(256, dtype=np.uint16) * 256, "I;16"),
        (np.arange(256, dtype=np.uint16) * 16, "I;16"),
    ],
    ids=["floats in 0…1", "floats in 0…255", "16 bits", "12 bits in 16"],
)
def test_grey_of_more_than_eight_bits_keeps_its_brightness(levels, mode) -> None:
    image = Image.fromarray(np.tile(levels, (16, 1)))
    assert image.mode == mode
    data = encoded(image, "TIFF")
    wanted = np.tile(np.arange(256), (16, 1))
    for grey in (decoded(prepare(data, Encoding())[0])[..., 0], np.asarray(open_upright(data, 10**6))[..., 0]):
        assert np.abs(grey - wanted).max() <= 1


def test_levels_of_unknown_meaning_are_refused_and_a_stray_one_changes_nothing() -> None:
    """All of these silently became black or white, in a shard and in a caption."""
    ramp = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (16, 1))
    for levels in (ramp * 2 - 1, ramp * 1e6, (ramp * 2**24).astype(np.int32), (ramp * -(2**24)).astype(np.int32)):
        data = encoded(Image.fromarray(levels), "TIFF")
        for read in (lambda data: prepare(data, Encoding()), lambda data: open_upright(data, 10**6)):
            with pytest.raises(BadSample, match="levels from"):
                read(data)
    ramp[0, 0], ramp[0, 1] = 1.02, np.inf
    stored = decoded(prepare(encoded(Image.fromarray(ramp), "TIFF"), Encoding())[0])
    assert np.abs(stored[1:, :, 0] - np.arange(256)).max() <= 1


def test_a_sixteen_bit_tiff_whose_zero_is_white_is_not_a_negative() -> None:
    levels = np.tile(np.arange(256, dtype=np.uint16) * 257, (16, 1))
    data = encoded(Image.fromarray(levels), "TIFF", tiffinfo={PHOTOMETRIC: WHITE_IS_ZERO})
    for grey in (decoded(prepare(data, Encoding())[0])[..., 0], np.asarray(open_upright(data, 10**6))[..., 0]):
        assert np.array_equal(grey, np.tile(np.arange(255, -1, -1), (16, 1)))


def test_pages_logs_and_searches_show_an_image_as_training_sees_it(tmp_path: Path) -> None:
    """A transparent image was black in a report, a 16-bit one white as a background."""
    clear = photograph().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    deep = Image.fromarray(np.asarray(photograph().convert("L"), np.uint16) * 257)
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    for data in (encoded(clear, "PNG"), encoded(deep, "PNG"), encoded(photograph(), "PNG", exif=turned)):
        file = tmp_path / f"{len(data)}.png"
        file.write_bytes(data)
        seen = open_upright(data, 10**6)
        for shown in (rgb(data), logged(file), opened_small(data, 10**3), Background(str(file)).open()):
            assert shown is not None
            assert np.array_equal(np.asarray(shown), np.asarray(seen))


def test_a_png_with_megabytes_of_text_is_read_and_a_bomb_of_text_is_skipped_by_the_conversion() -> None:
    """Image generators store their settings so. A shard must not contain what training cannot read."""

    def with_text(megabytes: int) -> bytes:
        text = PngInfo()
        text.add_text("workflow", "x" * (megabytes << 20), zip=True)
        return encoded(photograph(), "PNG", pnginfo=text)

    image = with_text(3)
    assert prepare(image, Encoding())[0] == image
    assert open_upright(image, 10**6).size == (320, 240)
    with pytest.raises(BadSample, match="too large") as told:
        prepare(with_text(100), Encoding())
    assert told.value.kind == "bad_image"


@pytest.mark.parametrize("named", ["sRGB", "test"])
def test_a_colour_profile_is_judged_by_its_effect_not_by_its_name(named: str) -> None:
    """A green that a profile calls Lab's is a green in the shard, whatever its numbers were."""
    plain = encoded(photograph(), "JPEG", icc_profile=srgb_profile(named))
    assert plain_size(plain) == (320, 240), "no closer look is needed"
    assert prepare(plain, Encoding())[::2] == (plain, [])
    assert np.array_equal(opened(plain, 10**6), decoded(plain))
    for form in ("PNG", "JPEG"):
        profile = swapped(srgb_profile(named))
        data = encoded(Image.new("RGB", (16, 16), (200, 30, 30)), form, icc_profile=profile)
        stored, _, notes = prepare(data, Encoding())
        assert notes == ["colour_profile"]
        for red, green, _ in (decoded(stored)[0, 0], opened(data, 10**6)[0, 0]):
            assert green > 150 > 100 > red


def srgb_profile(named: str) -> bytes:
    text = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for coding in ("utf-16-be", "ascii"):
        text = text.replace("sRGB".encode(coding), named.encode(coding))
    return text


def swapped(profile: bytes) -> bytes:
    """The profile with the red and green primaries exchanged."""
    red, green = (profile.index(tag, 128) for tag in (b"rXYZ", b"gXYZ"))
    made = bytearray(profile)
    made[red : red + 4], made[green : green + 4] = made[green : green + 4], made[red : red + 4]
    return bytes(made)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript program, which OneDiff does not run"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\xff\x0a" + bytes(32), "a JPEG XL image"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"GIF", "not a JPEG, PNG, WebP, GIF"),
    ],
)
def test_an_unsupported_file_is_named_by_its_actual_kind(data: bytes, said: str) -> None:
    with pytest.raises(BadSample, match=said):
        prepare(data, Encoding())
    with pytest.raises(BadSample, match=said):
        open_upright(data, 10**6)


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000", "HEIF"])
def test_newer_kinds_are_read_in_training_and_converted(form: str) -> None:
    if form == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    image = photograph()
    data = encoded(image, form, quality=95) if form != "JPEG2000" else encoded(image, form)
    assert np.abs(np.asarray(open_upright(data, 10**6), dtype=float) - np.asarray(image)).mean() < 8
    stored, size, notes = prepare(data, Encoding())
    assert size == image.size and notes == [form.lower()]
    assert np.abs(decoded(stored) - np.asarray(image)).mean() < 8


def test_ghostscript_is_never_started(monkeypatch) -> None:
    from PIL import EpsImagePlugin

    def asked(*_: object) -> None:
        raise AssertionError("a stranger's program would have run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", asked)
    drawn = encoded(photograph((20, 20)), "EPS")
    with pytest.raises(BadSample, match="PostScript"):
        open_upright(drawn, 10**6)
    with pytest.raises(OSError):
        open_image(io.BytesIO(drawn))


def test_every_image_is_opened_in_one_place() -> None:
    """Pillow's own `open` tries the parsers of forty kinds of files."""
    allowed = {"onediff/data/formats.py", "data_prep/scenes/distractors.py", "data_prep/scenes/backgrounds.py"}
    opening = re.compile(r"\bImage\.open\((?!.*formats=)")
    found = {
        str(file.relative_to(HOUSE))
        for package in ("onediff", "data_prep", "launcher")
        for file in (HOUSE / package).rglob("*.py")
        if opening.search(file.read_text(encoding="utf-8"))
    }
    assert found <= allowed, sorted(found - allowed)
