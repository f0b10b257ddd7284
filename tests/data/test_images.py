"""Images: the pixels of the Hugging Face image processors, and all kinds of image files."""

import io
import itertools
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil

from onediff.config.model import ImageConfig
from onediff.data.images import decode, fitted, fitted_fast, open_upright, opened
from onediff.data.sample import BadSample

RAW = {"do_normalize": False, "do_rescale": False, "return_tensors": "np"}
CLIP = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
SIGLIP = SiglipImageProcessorPil(size={"height": 48, "width": 48}, resample=3)
DINOV2 = BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, resample=3)
TOWERS = {
    "clip": (CLIP, ImageConfig(size=56, fit="crop")),
    "siglip": (SIGLIP, ImageConfig(size=48, fit="squash")),
    "dinov2": (DINOV2, ImageConfig(size=56, fit="crop", shorter_side=64)),
}


def expand2square(pil_img, background_color):
    """LLaVA-1.5's own (llava/mm_utils.py), applied before the processor with `tuple(int(x * 255) for x in image_mean)`."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    elif width > height:  # noqa: RET505
        result = Image.new(pil_img.mode, (width, width), background_color)
        result.paste(pil_img, (0, (width - height) // 2))
        return result
    else:
        result = Image.new(pil_img.mode, (height, height), background_color)
        result.paste(pil_img, ((height - width) // 2, 0))
        return result


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Gradients and noise: smooth and sharp parts."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x + y) * 127 / (width + height)], -1)
    return Image.fromarray(np.clip(smooth + random.normal(0, 40, smooth.shape), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


SIZES = [
    (56, 56),
    (40, 31),
    (500, 57),
    (57, 500),
    (64, 1),
    (1, 9),
    (333, 111),
    (111, 333),
    (97, 96),
    (640, 480),
    (57, 90),
]
random_sizes = [tuple(int(n) for n in size) for size in np.random.default_rng(1).integers(20, 400, (12, 2))]


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("size", SIZES + random_sizes)
def test_pixels_equal_the_image_processor(tower, size):
    processor, config = TOWERS[tower]
    image = photograph(*size)
    theirs = processor(image, **RAW)["pixel_values"][0]
    ours = fitted(image, config)
    assert ours.shape == theirs.shape
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    fast = fitted_fast(np.array(image), config)
    assert fast.flags.c_contiguous
    # Noise is the worst case, above all where it is scaled by little: the vector code rounds its weights to 16 bits.
    assert np.abs(fast.astype(int) - theirs.astype(int)).max() <= 10
    assert np.abs(fast.astype(int) - theirs.astype(int)).mean() < 0.5


@pytest.mark.parametrize("band", [1 << 22, 1000])
@pytest.mark.parametrize("size", SIZES + random_sizes)
def test_padded_pixels_are_those_of_llava_1_5(size, band, monkeypatch):
    monkeypatch.setattr("onediff.data.images.BAND_PIXELS", band)
    image, config = photograph(*size), ImageConfig(size=56)
    assert config.fit == "pad", "where nothing is said"
    square = expand2square(image, tuple(int(x * 255) for x in CLIP.image_mean))
    theirs = CLIP(square, **RAW)["pixel_values"][0]
    assert np.array_equal(fitted(image, config), theirs)
    fast = fitted_fast(np.array(image), config).astype(int)
    assert np.abs(fast - theirs).max() <= 10
    assert np.abs(fast - theirs).mean() < 0.5


def test_a_change_at_the_edge_of_a_wide_image_is_seen_unless_it_is_cropped_away():
    before, after = photograph(200, 100), photograph(200, 100)
    after.paste("red", (0, 30, 30, 70))
    for pixels, fit in itertools.product(("exact", "fast"), ("crop", "pad")):
        config = ImageConfig(size=56, fit=fit)
        inputs = [decode(encoded(image), config, pixels=pixels) for image in (before, after)]
        assert np.array_equal(*inputs) == (fit == "crop")


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (3, 90_000)])
def test_a_strip_of_a_few_bytes_costs_what_the_towers_square_costs(fit, size):
    """Scaled to the tower's size, such a strip has millions of pixels, of which only a square is used."""
    data, config = encoded(Image.new("RGB", size, "blue")), ImageConfig(size=336, fit=fit)
    for pixels in ("exact", "fast"):
        began = time.process_time()
        tracemalloc.start()
        made = decode(data, config, pixels=pixels)
        _, peak = tracemalloc.get_traced_memory()  # numpy's arrays; what Pillow makes is no larger
        tracemalloc.stop()
        assert (made[:, 167:169, 167:169].transpose(1, 2, 0) == (0, 0, 255)).all(-1).any()
        assert peak < 16e6 and time.process_time() - began < 2


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", [(700, 8), (8, 700)])
def test_a_strip_gets_the_same_pixels_as_without_the_limit(fit, size, monkeypatch):
    config, image = ImageConfig(size=56, fit=fit), photograph(*size).resize(size)
    smooth = Image.fromarray(np.asarray(image) // 4 + 90)
    cheap = fitted(smooth, config).astype(int)
    monkeypatch.setattr("onediff.data.images.MOST_SQUARES", 10_000)
    assert np.abs(cheap - fitted(smooth, config)).mean() < (1 if fit == "crop" else 3)


def test_the_tolerance_detects_another_filter_or_crop():
    """Another filter or another crop differs by more than one grey level."""
    image = photograph(97, 60)
    theirs = TOWERS["clip"][0](image, **RAW)["pixel_values"][0].astype(int)
    shifted = fitted(image.transform(image.size, Image.Transform.AFFINE, (1, 0, 1, 0, 1, 0)), TOWERS["clip"][1])
    assert np.abs(shifted.astype(int) - theirs).max() > 1
    assert np.abs(fitted(image, ImageConfig(size=56, fit="squash")).astype(int) - theirs).max() > 1


def test_normalised_pixels_equal_the_image_processor():
    from onediff.config.model import VisionConfig
    from onediff.model.vision import VisionTower

    processor, config = TOWERS["clip"]
    image = photograph(97, 60)
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    arch = {"model_type": "clip_vision_model", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    tower = VisionTower(VisionConfig(config={**arch, "image_size": 56, "patch_size": 14}, levels=(1,), image=config))
    ours = (fitted(image, config)[None] / 255 - tower.mean.numpy()) / tower.std.numpy()
    assert np.abs(ours[0] - theirs).max() < 2 / 255 / 0.26


def red_left(mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "RGB"), ("PNG", "P"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("PNG", "RGBA")]
)
def test_modes_and_formats(form, mode):
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    pixels = np.asarray(open_upright(encoded(red_left(mode), form, **options), 10_000)).astype(int)
    assert np.abs(pixels[10, 5] - (255, 0, 0)).max() < 30
    assert np.abs(pixels[10, 35] - (0, 0, 255)).max() < 30


def test_grey_images_keep_their_levels():
    levels = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (8, 1))
    eight = open_upright(encoded(Image.fromarray(levels)), 10_000)
    sixteen = open_upright(encoded(Image.fromarray(levels.astype(np.uint16) * 257)), 10_000)
    with_alpha = open_upright(encoded(Image.fromarray(levels).convert("LA")), 10_000)
    for image in (eight, sixteen, with_alpha):
        assert image.mode == "RGB"
        assert np.abs(np.asarray(image)[..., 1].astype(int) - levels).max() <= 1


def test_black_and_white():
    image = open_upright(encoded(Image.new("1", (4, 4), 1)), 100)
    assert np.asarray(image).min() == 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(mode):
    image = Image.new("RGBA", (6, 6), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 3, 6))
    if mode == "P":
        image = image.convert("RGB").quantize(2)
        data = encoded(image, transparency=image.getpixel((5, 5)))
        assert np.asarray(open_upright(data, 100)).min() == 255
        return
    pixels = np.asarray(open_upright(encoded(image.convert(mode)), 100))
    assert (pixels[:, :3] == 0).all()
    assert (pixels[:, 3:] == 255).all()


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_exif_orientation_is_applied(orientation):
    """Stores the image as a camera held that way does, and reads it upright."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = photograph(40, 24)
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = open_upright(encoded(stored, exif=exif), 10_000)
    assert read.size == (40, 24)
    assert np.array_equal(np.asarray(read), np.asarray(upright))


def promising(side: int) -> bytes:
    """A PNG of a few bytes whose header says `side` × `side` pixels."""
    data = bytearray(encoded(Image.new("L", (8, 8))))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_size_is_read_before_anything_is_decoded(monkeypatch):
    """A header that claims 30,000 × 30,000 pixels costs nothing."""
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loaded.append(image.size))
    for side in (11_000, 30_000):
        with pytest.raises(BadSample, match=rf"{side} × {side} pixels|{side * side} pixels") as refused:
            decode(promising(side), ImageConfig(size=8), max_pixels=100_000_000)
        assert refused.value.kind == "too_many_pixels"
    assert not loaded
    monkeypatch.undo()
    assert decode(encoded(Image.new("L", (10, 10))), ImageConfig(size=8), max_pixels=100).shape == (3, 8, 8)
    with pytest.raises(BadSample, match="10 × 11 pixels"):
        decode(encoded(Image.new("L", (10, 11))), ImageConfig(size=8), max_pixels=109)


def test_damaged_images_are_bad_samples():
    whole = encoded(photograph(60, 60), "JPEG")
    png = encoded(photograph(60, 60))
    for data in (b"", b"not an image", whole[:200], png[: len(png) // 2], whole[:2] + b"\0" * 50):
        with pytest.raises(BadSample) as refused:
            decode(data, ImageConfig(size=8))
        assert refused.value.kind == "bad_image"
        assert "\n" not in str(refused.value)


def with_orientation(orientation: int) -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif.tobytes()}


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 60, "progressive": True, "subsampling": "4:2:0"}),
        ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
        ("JPEG", with_orientation(1)),
        ("JPEG", with_orientation(6)),
        ("JPEG", {"xmp": b'<x tiff:Orientation="6"/>'}),
        ("PNG", {}),
        ("WEBP", {}),
    ],
)
def test_pixels_equal_pillows_and_fast_scaling_differs_only_by_rounding(form, options):
    data = encoded(photograph(97, 133), form, **options)
    assert np.array_equal(opened(data, 10**6), np.asarray(open_upright(data, 10**6)))
    for _, config in TOWERS.values():
        exact, fast = decode(data, config), decode(data, config, pixels="fast")
        assert np.array_equal(exact, fitted(open_upright(data, 10**6), config))
        assert np.abs(exact.astype(int) - fast.astype(int)).max() <= 10


def test_an_image_of_the_towers_own_size_keeps_its_pixels():
    image, config = photograph(63, 63), ImageConfig(size=63)
    for pixels in ("exact", "fast"):
        assert np.array_equal(decode(encoded(image), config, pixels=pixels), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_that_are_not_rgb_are_decoded_by_pillow(mode):
    data = encoded(red_left(mode), "JPEG")
    assert np.array_equal(opened(data, 10**6), np.asarray(open_upright(data, 10**6)))


def test_a_damaged_jpeg_is_refused_or_decoded_as_by_pillow():
    """JPEGs that are truncated, have flipped bytes or trailing data: the same pixels, or the same reason."""
    whole, config, random = encoded(photograph(60, 80), "JPEG"), TOWERS["clip"][1], np.random.default_rng(0)
    damaged = [whole[: len(whole) // 2], whole[:100], whole + b"more", b"", whole[:-2]]
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[random.integers(len(whole))] ^= 1 << random.integers(8)
        damaged.append(bytes(flipped))

    def outcome(how, *inputs) -> object:
        try:
            return np.asarray(how(*inputs)).tobytes()
        except BadSample as bad:
            return bad.kind

    for data in damaged:
        assert outcome(opened, data, 10_000) == outcome(open_upright, data, 10_000)
    big = encoded(Image.new("RGB", (200, 200)), "JPEG")
    for pixels in ("exact", "fast"):
        assert outcome(decode, big, config, 10_000, pixels) == "too_many_pixels"
