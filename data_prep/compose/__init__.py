"""Pairs made from photographs and cut-out images, with a known change and exact captions."""

from data_prep.compose.config import ComposeConfig
from data_prep.compose.library import Library, find_backgrounds, find_cutouts
from data_prep.compose.pair import compose_pair, compose_single

__all__ = ["ComposeConfig", "Library", "compose_pair", "compose_single", "find_backgrounds", "find_cutouts"]
