"""OneDiff (arXiv 2407.05645) for transformers: says how two images differ. Needs torch, transformers and Pillow only.

    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    inputs = processor(images=[before, after])
    print(processor.captions(model.generate(**inputs, max_new_tokens=64), inputs)[0])

Shape letters: B pairs, N tokens of an image, Q delta tokens, V tower width, W delta width, T tokens of a prompt.
"""

import copy
import json
import math
import os
import re

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchFeature,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.generation import GenerationMixin
from transformers.image_utils import load_image
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

PARTS = ("delta", "projector")
HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""Options of `from_pretrained` that say how a file is found."""
PEAK = 2.0
"""Amplitude of the place embeddings."""
MOST_SQUARES, MOST_COPIES = 64, 16
"""An image is scaled to at most this many times the tower's square, or padded to at most that many times its own pixels."""


class OneDiffConfig(PreTrainedConfig):
    """The parts' own configurations, how they fit together, how images are prepared, and the prompt."""

    model_type = "onediff"
    has_no_defaults_at_init = True

    def __init__(
        self,
        vision=None,
        language=None,
        levels=(),
        output_level=-1,
        delta=None,
        image=None,
        prompt=None,
        image_token_id=0,
        delta_token_id=0,
        **kwargs,
    ):
        self.vision, self.language = vision or {}, language or {}
        self.levels, self.output_level = list(levels), output_level
        self.delta, self.image, self.prompt = delta or {}, image or {}, prompt or {}
        self.image_token_id, self.delta_token_id = image_token_id, delta_token_id
        super().__init__(**kwargs)

    def part(self, name):
        """The transformers configuration of `vision` or `language`."""
        fields = dict(getattr(self, name))
        return AutoConfig.for_model(fields.pop("model_type"), **fields)

    def get_text_config(self, *args, **kwargs):
        """The language model's, once it is known."""
        return self.part("language").get_text_config() if self.language else self


class OneDiffAttention(nn.Module):
    """Multi-head attention with BERT's residual and norm behind it."""

    def __init__(self, delta, source_width):
        super().__init__()
        width = delta["width"]
        self.heads = delta["heads"]
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, key, value, places=None):
        """`[B, Q, W]` queries over keys and values `[B, K, W]`, already projected; `places` is added to the queries."""
        query = self.query(x) if places is None else self.query(x) + places
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.norm(x + self.output(mixed))


class OneDiffDeltaLayer(nn.Module):
    """Self-attention among delta tokens, cross-attention to both images, feed-forward; post-norm as in BERT."""

    def __init__(self, delta, vision_width):
        super().__init__()
        width = delta["width"]
        self.self_attention = OneDiffAttention(delta, width)
        self.cross_attention = OneDiffAttention(delta, vision_width)
        self.role_keys = nn.Parameter(torch.empty(2, width))
        self.role_values = nn.Parameter(torch.empty(2, width))
        self.expand = nn.Linear(width, delta["intermediate"])
        self.contract = nn.Linear(delta["intermediate"], width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, level, query_places, places):
        """One layer over a level `[B, 2, N, V]` with its tokens' `places` `[N, W]`."""
        own, cross = self.self_attention, self.cross_attention
        x = own(x, own.key(x), own.value(x))
        key = cross.key(level) + (places + self.role_keys[:, None])
        value = cross.value(level) * self.role_values[:, None]
        x = cross(x, key.flatten(1, 2), value.flatten(1, 2), query_places)
        return self.norm(x + self.contract(F.gelu(self.expand(x))))


class OneDiffDeltaModule(nn.Module):
    """Learned tokens that look at both images at several depths."""

    def __init__(self, delta, vision_width, levels):
        super().__init__()
        tokens, width, layers = delta["tokens"], delta["width"], delta["layers"]
        self.heads = delta["heads"]
        self.tokens = nn.Parameter(torch.empty(tokens, width))
        self.places = nn.Parameter(torch.empty(tokens, width))
        self.level_norms = nn.ModuleList(nn.LayerNorm(vision_width) for _ in range(levels))
        self.layers = nn.ModuleList(OneDiffDeltaLayer(delta, vision_width) for _ in range(layers))
        self.level_of_layer = [index * levels // layers for index in range(layers)]

    def forward(self, levels):
        """`[B, Q, W]` delta tokens from the tower's levels, each `[2B, N, V]`."""
        levels = [norm(level.unflatten(0, (-1, 2))) for norm, level in zip(self.level_norms, levels, strict=True)]
        points = torch.tensor(spread(levels[0].shape[2]), device=levels[0].device)
        places = place_embedding(points, self.tokens.shape[1], self.heads).to(levels[0].dtype)
        x = self.tokens.expand(len(levels[0]), -1, -1)
        for layer, level in zip(self.layers, self.level_of_layer, strict=True):
            x = layer(x, levels[level], self.places, places)
        return x


def spread(points):
    """`points` places (x, y) in the unit square in reading order, as even as rows allow; a square number is a grid."""
    rows = max(1, math.isqrt(points))
    made = []
    for row in range(rows):
        columns = (row + 1) * points // rows - row * points // rows
        made += [((column + 0.5) / columns, (row + 0.5) / rows) for column in range(columns)]
    return made


def place_embedding(points, width, heads):
    """`[points, width]`: sines and cosines of x and y, the same in every head."""
    size = width // heads
    waves = max(1, size // 4)
    angles = points[:, :, None] * torch.arange(1, waves + 1, device=points.device) * math.pi
    head = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
    head = F.pad(head, (0, max(0, size - head.shape[1])))[:, :size]
    return PEAK * head.repeat(1, heads)


class OneDiffProjector(nn.Module):
    """Image and delta tokens into the language model's width."""

    def __init__(self, vision_width, delta_width, language_width):
        super().__init__()
        self.picture_in = nn.Linear(vision_width, language_width)
        self.picture_out = nn.Linear(language_width, language_width)
        self.delta_in = nn.Linear(delta_width, language_width)
        self.delta_out = nn.Linear(language_width, language_width)

    def forward(self, images, deltas):
        """`[…, V]` and `[B, Q, W]`."""
        return self.picture_out(F.gelu(self.picture_in(images))), self.delta_out(F.gelu(self.delta_in(deltas)))


class OneDiffForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A vision tower, the delta module and a projector in front of a causal language model."""

    config_class = OneDiffConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config):
        super().__init__(config)
        vision, language = config.part("vision"), config.part("language")
        self.vision = AutoModel.from_config(vision)
        self.language = AutoModelForCausalLM.from_config(language)
        width = language.get_text_config().hidden_size
        self.delta = OneDiffDeltaModule(config.delta, vision.hidden_size, len(config.levels))
        self.projector = OneDiffProjector(vision.hidden_size, config.delta["width"], width)
        self.post_init()

    def _init_weights(self, module):
        """Nothing: this class is for trained weights."""

    @classmethod
    def from_pretrained(cls, folder, *args, config=None, dtype=None, torch_dtype=None, device_map=None, **kwargs):
        """Loads an export, whose `vision/` and `language/` are models of their own, or what `save_pretrained` wrote.

        `device_map`, `quantization_config` and the rest apply to the language model; the other parts go to its first
        device.
        """
        hub = {key: kwargs.pop(key) for key in HUB if key in kwargs}
        dtype = dtype or torch_dtype or "auto"
        for unused in ("trust_remote_code", "code_revision", "_from_auto", "adapter_kwargs"):
            kwargs.pop(unused, None)
        config = config or OneDiffConfig.from_pretrained(folder, **hub)
        files = {part: cached_file(folder, f"{part}.safetensors", **hub, **QUIET) for part in PARTS}
        if None in files.values():
            options = {**hub, **kwargs, "dtype": dtype, "device_map": device_map}
            return super().from_pretrained(folder, *args, config=config, **options)
        language = AutoModelForCausalLM.from_pretrained(
            folder, subfolder="language", dtype=dtype, device_map=device_map, **hub, **kwargs
        )
        attention = {key: kwargs[key] for key in ("attn_implementation",) if key in kwargs}
        vision = AutoModel.from_pretrained(folder, subfolder="vision", dtype=language.dtype, **hub, **attention)
        with torch.device("meta"):
            model = cls(config)
        model.vision, model.language = vision.to(language.device), language
        for part, file in files.items():
            weights = {name: tensor.to(language.device, language.dtype) for name, tensor in load_file(file).items()}
            getattr(model, part).load_state_dict(weights, assign=True)
        model.generation_config = GenerationConfig.from_pretrained(folder, **hub)
        return model.eval()

    @property
    def dtype(self):
        """The language model's."""
        return self.language.dtype

    @property
    def device(self):
        """The language model's first."""
        return self.language.device

    def get_input_embeddings(self):
        """The language model's."""
        return self.language.get_input_embeddings()

    def embed(self, input_ids, pixel_values):
        """`[B, T, width]`: words, image tokens and delta tokens in their places; `pixel_values` `[2B, 3, S, S]` uint8."""
        config = self.config
        words = self.get_input_embeddings()(input_ids.clamp(max=config.image_token_id - 1))
        mean, std = (
            torch.tensor(config.image[name], device=pixel_values.device).view(1, 3, 1, 1) for name in ("mean", "std")
        )
        pixels = ((pixel_values.float() / 255 - mean) / std).to(self.vision.dtype)
        hidden = self.vision(pixels, output_hidden_states=True).hidden_states
        extra = hidden[0].shape[1] - config.image["tokens"]  # class and register tokens come first
        levels = [hidden[level][:, extra:] for level in config.levels]
        output = hidden[config.output_level % len(hidden)][:, extra:]
        images, deltas = self.projector(output, self.delta(levels))
        for token, features in ((config.image_token_id, images), (config.delta_token_id, deltas)):
            places = (input_ids == token)[..., None].expand_as(words)
            words = words.masked_scatter(places, features.to(words))
        return words

    def forward(self, input_ids, pixel_values, attention_mask=None, **kwargs):
        """Logits of every place; `labels` give a loss as in any causal language model."""
        made = self.language(inputs_embeds=self.embed(input_ids, pixel_values), attention_mask=attention_mask, **kwargs)
        return CausalLMOutputWithPast(loss=made.get("loss"), logits=made.logits)

    @torch.no_grad()
    def generate(self, input_ids, pixel_values, attention_mask=None, generation_config=None, **kwargs):
        """`[B, T + new tokens]`: the prompts and what the language model continues them with."""
        embeds = self.embed(input_ids.to(self.device), pixel_values.to(self.device))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        settings = copy.deepcopy(generation_config or self.generation_config)
        others = settings.update(**kwargs)
        made = self.language.generate(
            inputs_embeds=embeds, attention_mask=mask.to(self.device), generation_config=settings, **others
        )
        return torch.cat([input_ids.to(made.device), made], 1)


QUIET = {"_raise_exceptions_for_missing_entries": False}


class OneDiffProcessor(ProcessorMixin):
    """Writes prompts and prepares images: pairs are given flat or as `[[before, after], …]`."""

    def __init__(self, tokenizer, settings, chat_template=None):
        self.tokenizer, self.settings, self.chat_template = tokenizer, settings, chat_template

    @classmethod
    def get_attributes(cls):
        """What else is loaded and saved by itself."""
        return ["tokenizer"]

    @classmethod
    def from_pretrained(cls, folder, **kwargs):
        """Reads `processor_config.json`, the tokenizer and the chat template of a folder or hub repository."""
        hub = {key: kwargs[key] for key in HUB if key in kwargs}
        with open(cached_file(folder, "processor_config.json", **hub), encoding="utf-8") as file:
            settings = json.load(file)
        with open(cached_file(folder, "chat_template.jinja", **hub), encoding="utf-8") as file:
            template = file.read()
        return cls(AutoTokenizer.from_pretrained(folder, subfolder="tokenizer", **hub), settings, template)

    def save_pretrained(self, folder, push_to_hub=False, **kwargs):
        """Writes what `from_pretrained` reads."""
        self.tokenizer.save_pretrained(os.path.join(folder, "tokenizer"))
        with open(os.path.join(folder, "processor_config.json"), "w", encoding="utf-8") as file:
            json.dump(self.settings, file, indent=2)
        with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as file:
            file.write(self.chat_template)

    @property
    def model_input_names(self):
        """What `__call__` gives."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(self, images=None, text=None, **kwargs):
        """Left-padded prompts of pairs, tensors throughout.

        `text` is a question or a whole prompt of `apply_chat_template` for each pair; without it the model is asked
        what it was trained on.
        """
        flat = list(flattened(images))
        pairs = len(flat) // 2
        if not pairs or len(flat) % 2:
            raise ValueError(f"OneDiff compares two images, before and after; there are {len(flat)}")
        texts = [text or ""] * pairs if text is None or isinstance(text, str) else list(text)
        if len(texts) != pairs:
            raise ValueError(f"{pairs} pairs of images and {len(texts)} prompts")
        rows = [self.token_ids(one) for one in texts]
        longest = max(map(len, rows))
        padded = [[self.tokenizer.eos_token_id] * (longest - len(row)) + row for row in rows]
        seen = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        pixels = np.stack([squared(opened(image), self.settings["image"]) for image in flat])
        tensors = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(seen)}
        return BatchFeature({**tensors, "pixel_values": torch.from_numpy(pixels)})

    def token_ids(self, text):
        """The tokens of one prompt; a text without places for images is a question."""
        prompt, mark = self.settings["prompt"], self.settings["prompt"]["mark"]
        if mark not in text:
            question = text or prompt["question"]
            text = prompt["before"] + mark + prompt["after_images"] + question + prompt["behind"]
        pieces = re.split(f"(?:{re.escape(mark)})+", text)
        if len(pieces) != 2:
            raise ValueError("both images stand in one place of a prompt")
        before, behind = (self.tokenizer(one, add_special_tokens=False)["input_ids"] if one else [] for one in pieces)
        images = [self.settings["image_token_id"]] * (2 * self.settings["image"]["tokens"])
        deltas = [self.settings["delta_token_id"]] * self.settings["delta_tokens"]
        return [*prompt["start"], *before, *images, *deltas, *behind]

    def captions(self, generated, inputs):
        """The sentences that `generate` added to the prompts of `inputs`."""
        return self.post_process_image_text_to_text(generated[:, inputs["input_ids"].shape[1] :])

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens=True, **kwargs):
        """Token ids as text; places of images and deltas are no text."""
        made = []
        for row in generated_outputs.tolist():
            words = [token for token in row if token < self.settings["image_token_id"]]
            ends = [place for place, token in enumerate(words) if token in self.settings["ends"]]
            # A prompt may hold such tokens itself, so a row that has images in it is not cut.
            words = words[: ends[0]] if ends and len(words) == len(row) else words
            made.append(self.tokenizer.decode(words, skip_special_tokens=skip_special_tokens).strip())
        return made


def flattened(images):
    """Images of nested lists, one after the other."""
    for one in images if isinstance(images, (list, tuple)) else [images]:
        yield from flattened(one) if isinstance(one, (list, tuple)) else [one]


def opened(image):
    """An upright RGB image from a path, an address, an array `[height, width, 3]` or Pillow; transparency on white."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image = ImageOps.exif_transpose(image if isinstance(image, Image.Image) else load_image(image))
    if image.mode != "RGB" and ("A" in image.getbands() or "transparency" in image.info):
        with_alpha = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), with_alpha)
    return image.convert("RGB")


def squared(image, settings):
    """`[3, size, size]` uint8: the image scaled to the tower's square, cropped, padded or squashed as it was trained."""
    size, fit, bicubic = settings["size"], settings["fit"], Image.Resampling.BICUBIC
    width, height = image.size
    if fit == "crop":
        shorter, short = settings["shorter_side"] or size, min(width, height)
        scaled = (shorter * width // short, shorter * height // short)
        left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        if scaled[0] * scaled[1] > MOST_SQUARES * size * size:
            across, down = width / scaled[0], height / scaled[1]
            box = (left * across, top * down, (left + size) * across, (top + size) * down)
            image = image.resize((size, size), bicubic, box)
        else:
            image = image.resize(scaled, bicubic).crop((left, top, left + size, top + size))
    elif fit == "pad":
        side, colour = max(width, height), tuple(int(255 * mean) for mean in settings["mean"])
        if side * side > max(MOST_SQUARES * size * size, MOST_COPIES * width * height):
            scaled = (max(1, round(width * size / side)), max(1, round(height * size / side)))
            square = Image.new("RGB", (size, size), colour)
            square.paste(image.resize(scaled, bicubic), ((size - scaled[0]) // 2, (size - scaled[1]) // 2))
        else:
            square = Image.new("RGB", (side, side), colour)
            square.paste(image, ((side - width) // 2, (side - height) // 2))
        image = square.resize((size, size), bicubic)
    else:
        image = image.resize((size, size), bicubic)
    return np.asarray(image).transpose(2, 0, 1)
