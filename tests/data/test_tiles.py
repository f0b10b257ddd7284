"""`fit: tiles` and `fit: native`: the pixels of the Hugging Face processors, and the layout of tokens."""

import io

import numpy as np
import pytest
import torch
from drawn import image, pair, png
from PIL import Image
from streams import DELTA_TOKENS, make_processor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from onediff.config.model import ImageConfig
from onediff.data.fits import Native, Tiles
from onediff.data.images import open_upright, upright_size
from onediff.data.native import unpatched
from onediff.data.planes import laid_out
from onediff.data.prompts import DELTA, IMAGE
from onediff.data.rows import collate, collate_packed
from onediff.data.sample import BadSample
from onediff.hub.planes_onediff import best_grid, grids, native_shape

SIDE, PATCH = 32, 8
SIZES = [(64, 32), (32, 64), (61, 45), (160, 90), (400, 37), (20, 30), (32, 32), (1000, 1), (97, 99)]


def tiles(most: int = 6) -> Tiles:
    return Tiles(ImageConfig(size=SIDE, fit="tiles", max_tiles=most), PATCH)


def native(most: int = 20) -> Native:
    return Native(ImageConfig(fit="native", max_patches=most), PATCH)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_equal_the_views_of_llava_next(size):
    pinpoints = [[rows * SIDE, columns * SIDE] for columns, rows in grids(6)]
    processor = LlavaNextImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=pinpoints,
        do_normalize=False,
        do_rescale=False,
    )
    if min(size) > 1:
        columns, rows = best_grid([size], SIDE, 6)
        assert (rows * SIDE, columns * SIDE) == select_best_resolution(size[::-1], pinpoints)
        theirs = processor(image(size), return_tensors="np")["pixel_values"][0]
        ours = tiles().of([image(size)]).images
        # An image that one tile holds is seen once.
        assert np.array_equal(ours, theirs[: len(ours)])
        assert len(ours) == (1 if columns * rows == 1 else 1 + columns * rows)


@pytest.mark.parametrize("size", SIZES)
def test_patches_equal_those_of_siglip_2(size):
    processor = Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=20, do_normalize=False, do_rescale=False)
    theirs = processor(image(size), return_tensors="np")
    seen = native().of([image(size)])
    assert seen.planes[0].shape == tuple(theirs["spatial_shapes"][0])
    assert len(seen.images) == theirs["pixel_attention_mask"].sum() == seen.tokens[0] <= 20
    assert np.array_equal(seen.images, theirs["pixel_values"][0][: len(seen.images)])
    whole = image(size).resize([length * PATCH for length in seen.planes[0].shape[::-1]], Image.Resampling.BILINEAR)
    assert np.array_equal(unpatched(seen.images, seen.planes[0].shape), np.asarray(whole))


@pytest.mark.parametrize("fit", [tiles(), native()], ids=["tiles", "native"])
@pytest.mark.parametrize("size", [(64, 32), (61, 45), (45, 160)])
def test_a_token_lies_where_its_pixels_come_from(fit, size):
    """With a ramp from left to right, and one from top to bottom, a token's mean pixel is the centre of its box."""
    patch = PATCH
    for axis in (0, 1):
        ramp = np.linspace(0, 255, size[axis])
        pixels = np.broadcast_to(ramp if axis == 0 else ramp[:, None], size[::-1])
        seen = fit.of([Image.fromarray(np.round(pixels).astype(np.uint8)).convert("RGB")])
        if seen.planes[0].shape is None:
            cut = seen.images.reshape(-1, 3, SIDE // patch, patch, SIDE // patch, patch)
            values = cut.mean((1, 3, 5)).ravel()
        else:
            values = seen.images.mean(-1)
        boxes = seen.planes[0].boxes
        # In tiles the others touch an edge, or padding.
        whole = (boxes > 0).all(1) & (boxes < 1).all(1) | (seen.planes[0].shape is not None)
        middle = (boxes[:, axis] + boxes[:, axis + 2]) / 2
        assert whole.sum() >= 4
        assert np.abs(values[seen.planes[0].chosen] / 255 - middle)[whole].max() < 0.03


def test_every_part_of_the_image_is_seen_by_tiles_and_no_token_sees_padding_alone():
    plane = tiles().planes([(61, 45)])[0]  # 64 × 48 of 64 × 64
    overview, rest = plane.boxes[:16], plane.boxes[16:]
    for boxes in (overview, rest):
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        assert area.min() > 0
        assert area.sum() == pytest.approx(1, abs=1e-5)
    assert (len(rest), plane.given) == (6 * 8, 5 * 16)


def test_both_images_of_a_pair_get_the_same_grid():
    wide, tall = (96, 32), (32, 96)
    assert best_grid([wide], SIDE, 3) == (3, 1) and best_grid([tall], SIDE, 3) == (1, 3)
    planes = tiles(3).planes([wide, tall])
    assert planes[0].inputs == planes[1].inputs
    same = tiles(3).planes([wide, wide])
    assert same[0] is same[1]
    assert native_shape(wide, PATCH, 20) == (2, 6) and native_shape(tall, PATCH, 20) == (6, 2)


def test_a_size_read_from_the_header_is_that_of_the_upright_image(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    for kind, options in (
        ("JPEG", {"exif": turned}),
        ("PNG", {"exif": turned}),
        ("WEBP", {"exif": turned}),
        ("BMP", {}),
    ):
        out = io.BytesIO()
        image((40, 20)).save(out, kind, **options)
        opened = open_upright(out.getvalue(), 10_000)
        assert upright_size(out.getvalue(), 10_000) == opened.size == ((20, 40) if options else (40, 20))
    with pytest.raises(BadSample, match="40 × 20 pixels"):
        upright_size(png(image((40, 20))), 799)
    with pytest.raises(BadSample) as refused:
        upright_size(b"nothing", 800)
    assert refused.value.kind == "bad_image"


@pytest.mark.parametrize("fit", ["tiles", "native"])
def test_a_batch_of_many_shapes_keeps_them_apart(fit):
    processor = make_processor(image=ImageConfig(size=SIDE, fit=fit, max_tiles=4, max_patches=20), patch=PATCH)
    samples = [pair(0, (40, 30)), pair(1, (90, 40), (90, 40)), pair(2), pair(3, (32, 32), (70, 32))]
    rows = [processor.row(sample, None, 0) for sample in samples]
    for sample, row in zip(samples, rows, strict=True):
        assert processor.tokens(sample, None, 0) == len(row.token_ids)
        assert (row.token_ids == IMAGE).sum() == sum(row.image_tokens)
        assert (row.token_ids == DELTA).sum() == DELTA_TOKENS * row.is_pair
    for batch in (collate(rows), collate_packed([rows[:2], rows[2:]], 300)):
        planes = batch.planes
        assert planes.lengths == (*rows[1].image_tokens, *rows[3].image_tokens, *rows[0].image_tokens)
        assert planes.pairs.lengths == (sum(rows[1].image_tokens), sum(rows[3].image_tokens))
        assert len(batch.image_places) == sum(planes.lengths) == len(planes.chosen) == len(planes.boxes)
        assert (
            planes.roles.tolist()
            == [0] * planes.lengths[0] + [1] * planes.lengths[1] + [0] * planes.lengths[2] + [1] * planes.lengths[3]
        )
        alone = [laid_out([row]) for row in (rows[1], rows[3], rows[0])]
        if fit == "tiles":
            assert batch.images.equal(torch.cat([images for images, _ in alone]))
        else:
            # As `spatial_shapes` and `pixel_attention_mask` of the processor say.
            counts = [rows * columns for rows, columns in planes.shapes]
            assert planes.mask[:, 0, 0].sum(1).tolist() == counts == list(planes.lengths)
        flat = batch.images if fit == "native" else batch.images.unflatten(2, (4, 8)).unflatten(4, (4, 8))
        flat = flat.flatten(0, 1) if fit == "native" else flat.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        apart = []
        for images, one in alone:
            cut = images if fit == "native" else images.unflatten(2, (4, 8)).unflatten(4, (4, 8))
            cut = cut.flatten(0, 1) if fit == "native" else cut.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
            apart.append(cut[one.chosen])
        assert flat[planes.chosen].equal(torch.cat(apart))


@pytest.mark.parametrize(("fit", "told"), [("crop", False), ("tiles", True), ("native", True)])
def test_a_change_at_the_left_edge_of_a_wide_image_reaches_the_model(fit, told):
    processor = make_processor(image=ImageConfig(size=SIDE, fit=fit, max_patches=20), patch=PATCH)
    before = image((128, 64))
    after = before.copy()
    after.paste((255, 0, 0), (0, 20, 12, 40))
    row = processor.prompt([before, after], None)
    first, second = row.images.chunk(2)
    assert first.equal(second) != told
