"""OneDiff (arXiv 2407.05645) for transformers: describes how two images differ. Needs only torch, transformers and Pillow.

    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    inputs = processor(images=[before, after])
    print(processor.captions(model.generate(**inputs, max_new_tokens=64), inputs)[0])

Shape letters: B pairs, N image tokens of all pairs, K those of the largest pair, Q delta tokens, V tower width, W delta
width, T tokens of a prompt.
"""

import copy
import math
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

from .planes_onediff import planes_of

PARTS = ("delta", "projector")
HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""Options of `from_pretrained` for locating files."""
QUIET = {"_raise_exceptions_for_missing_entries": False}
PEAK = 2.0
"""Amplitude of the position embeddings."""


class OneDiffConfig(PreTrainedConfig):
    """The configurations of the parts and of their connection, the image preprocessing, and the prompt."""

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
        """The language model's configuration, if set."""
        return self.part("language").get_text_config() if self.language else self


class OneDiffAttention(nn.Module):
    """Multi-head attention followed by BERT's residual connection and norm."""

    def __init__(self, delta, source_width):
        super().__init__()
        width = delta["width"]
        self.heads = delta["heads"]
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, key, value, places=None, mask=None):
        """Attention of `x` `[B, Q, W]` over projected keys and values `[B, K, W]`; `places` is added to the queries.

        `mask` `[B, 1, 1, K]` excludes padding.
        """
        query = self.query(x) if places is None else self.query(x) + places
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
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

    def forward(self, x, level, query_places, places, pairs):
        """One layer over a level `[N, V]`, whose tokens have the position embeddings `places` `[N, W]`."""
        own, cross = self.self_attention, self.cross_attention
        x = own(x, own.key(x), own.value(x))
        key = cross.key(level) + (places + self.role_keys[pairs.roles])
        value = cross.value(level) * self.role_values[pairs.roles]
        x = cross(x, pairs.laid_out(key), pairs.laid_out(value), query_places, pairs.mask)
        return self.norm(x + self.contract(F.gelu(self.expand(x))))


class OneDiffPairs:
    """Arranges image tokens in rows of pairs, padded if they differ in length."""

    def __init__(self, planes, device):
        tokens = [len(plane.chosen) for plane in planes]
        self.tokens = tokens
        self.lengths = [sum(tokens[first : first + 2]) for first in range(0, len(tokens), 2)]
        self.roles = torch.arange(len(tokens), device=device) % 2
        self.roles = self.roles.repeat_interleave(torch.tensor(tokens, device=device))
        self.centres = torch.from_numpy(np.concatenate([plane.centres() for plane in planes])).to(device)
        self.mask = None
        if len(set(self.lengths)) > 1:
            places = torch.arange(max(self.lengths), device=device)
            self.mask = (places < torch.tensor(self.lengths, device=device)[:, None])[:, None, None]

    def laid_out(self, tokens):
        """`[N, W]` to `[B, K, W]`."""
        return pad_sequence(tokens.split(self.lengths), batch_first=True)


class OneDiffDeltaModule(nn.Module):
    """Learned tokens that attend to both images at several depths."""

    def __init__(self, delta, vision_width, levels):
        super().__init__()
        tokens, width, layers = delta["tokens"], delta["width"], delta["layers"]
        self.heads = delta["heads"]
        self.tokens = nn.Parameter(torch.empty(tokens, width))
        self.places = nn.Parameter(torch.empty(tokens, width))
        self.level_norms = nn.ModuleList(nn.LayerNorm(vision_width) for _ in range(levels))
        self.layers = nn.ModuleList(OneDiffDeltaLayer(delta, vision_width) for _ in range(layers))
        self.level_of_layer = [index * levels // layers for index in range(layers)]
        residual = delta.get("kind") == "residual"
        self.difference = nn.Linear(vision_width, width, bias=False) if residual else None

    def forward(self, levels, pairs):
        """The delta tokens `[B, Q, W]` from the tower's levels, each `[N, V]`."""
        levels = [norm(level) for norm, level in zip(self.level_norms, levels, strict=True)]
        places = place_embedding(pairs.centres, self.tokens.shape[1], self.heads).to(levels[0].dtype)
        x = self.tokens.expand(len(pairs.lengths), -1, -1)
        for layer, level in zip(self.layers, self.level_of_layer, strict=True):
            x = layer(x, levels[level], self.places, places, pairs)
        return x if self.difference is None else x + self.differences(levels[-1], places, pairs)

    def differences(self, level, places, pairs):
        """`[B, Q, W]`: after minus before, around the place of each delta token."""
        found = []
        for key, value in zip(places.split(pairs.tokens), self.difference(level).split(pairs.tokens)):  # noqa: B905
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(0, 1) for t in (self.places, key, value))
            found.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
        return torch.stack(found[1::2]) - torch.stack(found[::2])


def place_embedding(points, width, heads):
    """`[points, 2]` to `[points, width]`: sines and cosines of x and y, the same in every head."""
    size = width // heads
    waves = max(1, size // 4)
    angles = points[:, :, None] * torch.arange(1, waves + 1, device=points.device) * math.pi
    head = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
    head = F.pad(head, (0, max(0, size - head.shape[1])))[:, :size]
    return PEAK * head.repeat(1, heads)


class OneDiffProjector(nn.Module):
    """Projects image and delta tokens to the language model's width."""

    def __init__(self, vision_width, delta_width, language_width):
        super().__init__()
        self.picture_in = nn.Linear(vision_width, language_width)
        self.picture_out = nn.Linear(language_width, language_width)
        self.delta_in = nn.Linear(delta_width, language_width)
        self.delta_out = nn.Linear(language_width, language_width)

    def forward(self, images, deltas):
        """`[N, V]` and `[B, Q, W]`."""
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
        """Does nothing, because this class is for trained weights."""

    @classmethod
    def from_pretrained(cls, folder, *args, config=None, dtype=None, torch_dtype=None, device_map=None, **kwargs):
        """Loads an export, in which `vision/` and `language/` are separate models, or the output of `save_pretrained`.

        `device_map`, `quantization_config` and other options apply to the language model; the other parts go to its first
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
        """The language model's dtype."""
        return self.language.dtype

    @property
    def device(self):
        """The language model's first device."""
        return self.language.device

    def get_input_embeddings(self):
        """The language model's input embeddings."""
        return self.language.get_input_embeddings()

    def see(self, pixel_values, planes):
        """The tower's output and levels for uint8 images, each `[N, V]`, without tokens that saw only padding."""
        image, native = self.config.image, planes[0].shape is not None
        mean, std = (torch.tensor(image[name], device=pixel_values.device) for name in ("mean", "std"))
        # A patch is a list of pixels with three channels each.
        shape = (1, 1, -1) if native else (1, 3, 1, 1)
        times = image["patch"] ** 2 if native else 1
        pixels = (pixel_values.float() / 255 - mean.repeat(times).view(shape)) / std.repeat(times).view(shape)
        shapes, given = {}, image["tokens"]
        starts = accumulate((plane.given for plane in planes), initial=0)
        if native:
            given = pixels.shape[1]
            seen = torch.arange(given) < torch.tensor([plane.given for plane in planes])[:, None]
            shapes = {"pixel_attention_mask": seen.long().to(pixels.device)}
            shapes["spatial_shapes"] = torch.tensor([plane.shape for plane in planes])
            starts = range(0, len(planes) * given, given)
        hidden = self.vision(pixels.to(self.vision.dtype), output_hidden_states=True, **shapes).hidden_states
        extra = hidden[0].shape[1] - given  # class and register tokens come first
        chosen = np.concatenate([plane.chosen + start for plane, start in zip(planes, starts)])  # noqa: B905
        chosen = torch.from_numpy(chosen).to(pixels.device)
        read = (self.config.output_level % len(hidden), *self.config.levels)
        output, *levels = (hidden[level][:, extra:].flatten(0, 1)[chosen] for level in read)
        return output, levels

    def embed(self, input_ids, pixel_values, image_sizes=None):
        """`[B, T, width]`: the embeddings of text, image tokens and delta tokens.

        `pixel_values` and `image_sizes` `[2B, 2]` (width, height) come from the processor; square views need no sizes.
        """
        config = self.config
        sizes = [(1, 1)] * (2 * len(input_ids)) if image_sizes is None else image_sizes.tolist()
        planes = planes_of(config.image, sizes)
        words = self.get_input_embeddings()(input_ids.clamp(max=config.image_token_id - 1))
        output, levels = self.see(pixel_values, planes)
        images, deltas = self.projector(output, self.delta(levels, OneDiffPairs(planes, output.device)))
        for token, features in ((config.image_token_id, images), (config.delta_token_id, deltas)):
            places = (input_ids == token)[..., None].expand_as(words)
            words = words.masked_scatter(places, features.to(words))
        return words

    def forward(self, input_ids, pixel_values, attention_mask=None, image_sizes=None, **kwargs):
        """The logits of every position; with `labels`, also the loss, as in any causal language model."""
        embeds = self.embed(input_ids, pixel_values, image_sizes)
        made = self.language(inputs_embeds=embeds, attention_mask=attention_mask, **kwargs)
        return CausalLMOutputWithPast(loss=made.get("loss"), logits=made.logits)

    @torch.no_grad()
    def generate(
        self, input_ids, pixel_values, attention_mask=None, image_sizes=None, generation_config=None, **kwargs
    ):
        """`[B, T + new tokens]`: the prompts followed by the generated tokens."""
        embeds = self.embed(input_ids.to(self.device), pixel_values.to(self.device), image_sizes)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        settings = copy.deepcopy(generation_config or self.generation_config)
        others = settings.update(**kwargs)
        made = self.language.generate(
            inputs_embeds=embeds, attention_mask=mask.to(self.device), generation_config=settings, **others
        )
        return torch.cat([input_ids.to(made.device), made], 1)
