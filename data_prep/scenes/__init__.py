"""Rendered scenes of a few solids, in pairs with a known change or alone, with exact captions."""

from data_prep.scenes.config import DistractorsConfig, ScenesConfig
from data_prep.scenes.render import RenderedPair, Single, render_pair, render_single

__all__ = ["DistractorsConfig", "RenderedPair", "ScenesConfig", "Single", "render_pair", "render_single"]
