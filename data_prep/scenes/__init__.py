"""Rendered scenes of a few solids, in pairs with a known change or alone, with exact captions."""

from data_prep.scenes.config import DistractorsConfig, ScenesConfig
from data_prep.scenes.render import Pair, Single, render_pair, render_single

__all__ = ["DistractorsConfig", "Pair", "ScenesConfig", "Single", "render_pair", "render_single"]
