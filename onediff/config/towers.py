"""Supported types of vision towers, by the image sizes that they accept."""

from __future__ import annotations

ONE_SIZE = (
    "aimv2_vision_model",
    "chinese_clip_vision_model",
    "clip_vision_model",
    "deit",
    "ijepa",
    "siglip_vision_model",
    "vit",
    "vit_msn",
)
"""Model types whose position embeddings fit a single image size; those in `ANY_SIZE` fit several or interpolate."""
ANY_SIZE = (
    "beit",
    "data2vec-vision",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "idefics3_vision",
    "internvl_vision",
    "mlcd_vision_model",
    "pixio",
    "sapiens2",
    "smolvlm_vision",
    "tipsv2_vision_model",
)
OWN_SHAPE = ("siglip2_vision_model",)
"""Model types that take patches in the image's own shape."""
