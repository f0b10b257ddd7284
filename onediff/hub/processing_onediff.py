"""The processor of OneDiff for transformers: prompts and images. Needs only torch, transformers and Pillow."""

import io
import json
import os
import re
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from .planes_onediff import best_grid, native_shape, place_in, planes_of

HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""Options of `from_pretrained` for locating files."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF", "JPEG2000")
"""Supported image formats. Others are refused: Pillow would have Ghostscript execute PostScript, for example."""
OWN_SHAPE = ("tiles", "native")
"""Values of `fit` for which the number of image tokens depends on the image size."""
MOST_SQUARES, MOST_COPIES = 64, 16
"""Limits on the pixels of scaled and padded images, as multiples of the tower's square and of the image."""
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


class OneDiffProcessor(ProcessorMixin):
    """Writes prompts and preprocesses images. Pairs may be flat or nested, `[[before, after], …]`."""

    def __init__(self, tokenizer, settings, chat_template=None):
        self.tokenizer, self.settings, self.chat_template = tokenizer, settings, chat_template

    @classmethod
    def get_attributes(cls):
        """Attributes that are loaded and saved separately."""
        return ["tokenizer"]

    @classmethod
    def from_pretrained(cls, folder, **kwargs):
        """Loads `processor_config.json`, the tokenizer and the chat template from a folder or hub repository."""
        hub = {key: kwargs[key] for key in HUB if key in kwargs}
        with open(cached_file(folder, "processor_config.json", **hub), encoding="utf-8") as file:
            settings = json.load(file)
        with open(cached_file(folder, "chat_template.jinja", **hub), encoding="utf-8") as file:
            template = file.read()
        return cls(AutoTokenizer.from_pretrained(folder, subfolder="tokenizer", **hub), settings, template)

    def save_pretrained(self, folder, push_to_hub=False, **kwargs):
        """Writes the files that `from_pretrained` loads."""
        self.tokenizer.save_pretrained(os.path.join(folder, "tokenizer"))
        with open(os.path.join(folder, "processor_config.json"), "w", encoding="utf-8") as file:
            json.dump(self.settings, file, indent=2)
        with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as file:
            file.write(self.chat_template)

    @property
    def model_input_names(self):
        """The tensors that `__call__` returns."""
        names = ["input_ids", "attention_mask", "pixel_values"]
        return [*names, "image_sizes"] if self.settings["image"]["fit"] in OWN_SHAPE else names

    def __call__(self, images=None, text=None, **kwargs):
        """Tensors for left-padded prompts of pairs.

        `text` is a question, or a whole prompt from `apply_chat_template`, for each pair; the default is the instruction of
        training.
        """
        flat = [opened(image) for image in flattened(images)]
        pairs = len(flat) // 2
        if not pairs or len(flat) % 2:
            raise ValueError(f"OneDiff compares two images, before and after, but got {len(flat)}")
        texts = [text or ""] * pairs if text is None or isinstance(text, str) else list(text)
        if len(texts) != pairs:
            raise ValueError(f"{pairs} pairs of images, but {len(texts)} prompts")
        sizes = [image.size for image in flat]
        tokens = [len(plane.chosen) for plane in planes_of(self.settings["image"], sizes)]
        rows = [self.token_ids(one, tokens[2 * pair : 2 * pair + 2]) for pair, one in enumerate(texts)]
        longest = max(map(len, rows))
        padded = [[self.tokenizer.eos_token_id] * (longest - len(row)) + row for row in rows]
        seen = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        tensors = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(seen)}
        tensors["pixel_values"] = torch.from_numpy(pixels_of(flat, self.settings["image"]))
        if "image_sizes" in self.model_input_names:
            tensors["image_sizes"] = torch.tensor(sizes)
        return BatchFeature(tensors)

    def token_ids(self, text, image_tokens):
        """The tokens of one prompt; `image_tokens` holds the numbers for before and after.

        A text without image marks is a question, to which the rest of the prompt is added.
        """
        prompt, mark = self.settings["prompt"], self.settings["prompt"]["mark"]
        if mark not in text:
            question = text or prompt["question"]
            places = "" if mark in question else mark + prompt["after_images"]
            text = prompt["before"] + places + question + prompt["behind"]
        first, *others = re.split(f"(?:{re.escape(mark)})+", text)
        if len(others) not in (1, 2):
            raise ValueError("a prompt must have one image mark for both images, or one for each")
        counts = image_tokens if len(others) == 2 else [sum(image_tokens)]
        images = [[self.settings["image_token_id"]] * count for count in counts]
        images[-1] += [self.settings["delta_token_id"]] * self.settings["delta_tokens"]
        made = [*prompt["start"], *self._words(first)]
        for tokens, words in zip(images, others, strict=True):
            made += tokens + self._words(words)
        return made

    def _words(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def captions(self, generated, inputs):
        """The captions that `generate` appended to the prompts of `inputs`."""
        return self.post_process_image_text_to_text(generated[:, inputs["input_ids"].shape[1] :])

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens=True, **kwargs):
        """Decodes token ids without image and delta tokens."""
        made = []
        for row in generated_outputs.tolist():
            words = [token for token in row if token < self.settings["image_token_id"]]
            ends = [place for place, token in enumerate(words) if token in self.settings["ends"]]
            # A prompt may contain such tokens itself, so a row with image tokens is not cut.
            words = words[: ends[0]] if ends and len(words) == len(row) else words
            made.append(self.tokenizer.decode(words, skip_special_tokens=skip_special_tokens).strip())
        return made


def flattened(images):
    """Yields the images in nested lists."""
    for one in images if isinstance(images, (list, tuple)) else [images]:
        yield from flattened(one) if isinstance(one, (list, tuple)) else [one]


def readable():
    """The `FORMATS` that this build of Pillow supports; it would raise KeyError for others."""
    Image.init()
    return [kind for kind in FORMATS if kind in Image.OPEN]


def opened(image):
    """An upright RGB image from a path, a URL, an array `[height, width, 3]` or Pillow, with transparency on white."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    elif isinstance(image, str) and image.startswith(("http://", "https://", "data:")):
        with urlopen(image) as answer:
            image = Image.open(io.BytesIO(answer.read()), formats=readable())
    elif not isinstance(image, Image.Image):
        image = Image.open(image, formats=readable())
    white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        levels = np.asarray(image)
        # Pillow inverts only 8-bit images.
        image = Image.fromarray(eight_bits(65535 - levels if white_is_zero and levels.dtype == np.uint16 else levels))
    elif image.mode != "RGB" and ("A" in image.getbands() or "transparency" in image.info):
        with_alpha = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), with_alpha)
    return image.convert("RGB")


def eight_bits(levels):
    """Converts grey levels to bytes: floats in 0…1 or 0…255; integers of 16 bits, or of 12 or 8 if none is larger.

    Raises ValueError for other levels, which would become black or white.
    """
    is_float = np.issubdtype(levels.dtype, np.floating)
    finite = levels[np.isfinite(levels)]
    least, most = finite.min(initial=0), finite.max(initial=0)
    if most > 65535 or (not is_float and least < -32768) or (is_float and -1 <= least < -0.1 and most <= 1):
        raise ValueError(f"levels from {least:g} to {most:g}: save the image with 8 or 16 bits per channel")
    if is_float:
        levels = np.nan_to_num(levels, nan=0, posinf=most, neginf=0)
    if is_float and most <= 255:
        return np.rint(levels * (255 if most <= 2 else 1)).clip(0, 255).astype(np.uint8)
    levels = levels.astype(np.int64).clip(0, 65535)
    return (levels >> (0 if most <= 255 else 4 if most <= 4095 else 8)).astype(np.uint8)


def pixels_of(images, settings):
    """The tower's input for the images of pairs, uint8.

    `[views, 3, size, size]`, or with `native`, `[images, patches, numbers]`, padded with zeros to the most patches.
    """
    if settings["fit"] == "native":
        patches = [native_patches(image, settings) for image in images]
        padded = np.zeros((len(patches), max(map(len, patches)), patches[0].shape[1]), np.uint8)
        for place, one in zip(padded, patches, strict=True):
            place[: len(one)] = one
        return padded
    if settings["fit"] == "tiles":
        pairs = [images[first : first + 2] for first in range(0, len(images), 2)]
        return np.concatenate([view for pair in pairs for view in tiled(pair, settings)])
    return np.stack([squared(image, settings) for image in images])


def tiled(pair, settings):
    """Yields `[views, 3, size, size]` for each image: the squashed overview, then its tiles in the pair's grid."""
    size = settings["size"]
    grid = best_grid([image.size for image in pair], size, settings["max_tiles"])
    for image in pair:
        yield np.asarray(image.resize((size, size), BICUBIC)).transpose(2, 0, 1)[None]
        if grid != (1, 1):
            left, top, width, height = place_in(grid, image.size, size)
            canvas = Image.new("RGB", (grid[0] * size, grid[1] * size))
            canvas.paste(image.resize((width, height), BICUBIC), (left, top))
            tiles = np.asarray(canvas).reshape(grid[1], size, grid[0], size, 3)
            yield tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, size, size)


def native_patches(image, settings):
    """`[patches, patch · patch · 3]` of an image scaled to whole patches."""
    patch = settings["patch"]
    rows, columns = native_shape(image.size, patch, settings["max_patches"])
    scaled = np.asarray(image.resize((columns * patch, rows * patch), BILINEAR))
    cut = scaled.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4)
    return cut.reshape(rows * columns, -1)


def squared(image, settings):
    """`[3, size, size]` uint8: the image cropped, padded or squashed to the tower's square, as in training."""
    if settings["fit"] == "crop":
        image = cropped(image, settings["size"], settings["shorter_side"] or settings["size"])
    elif settings["fit"] == "pad":
        image = padded_to_square(image, settings["size"], tuple(int(255 * mean) for mean in settings["mean"]))
    else:
        image = image.resize((settings["size"],) * 2, BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def cropped(image, size, shorter):
    """The centre crop of the image scaled by its shorter side."""
    width, height = image.size
    short = min(width, height)
    scaled = (shorter * width // short, shorter * height // short)
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    if scaled[0] * scaled[1] > MOST_SQUARES * size * size:
        across, down = width / scaled[0], height / scaled[1]
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return image.resize((size, size), BICUBIC, box)
    return image.resize(scaled, BICUBIC).crop((left, top, left + size, top + size))


def padded_to_square(image, size, colour):
    """The whole image centred in a square of one colour."""
    width, height = image.size
    side = max(width, height)
    if side * side > max(MOST_SQUARES * size * size, MOST_COPIES * width * height):
        scaled = (max(1, round(width * size / side)), max(1, round(height * size / side)))
        square = Image.new("RGB", (size, size), colour)
        square.paste(image.resize(scaled, BICUBIC), ((size - scaled[0]) // 2, (size - scaled[1]) // 2))
        return square
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square.resize((size, size), BICUBIC)
