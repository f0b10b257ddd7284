"""A self-contained HTML page about a set of captions: scores beside published ones, and the pairs themselves."""

from onediff.evaluation.report.images import PairImages, shard_images, with_attention
from onediff.evaluation.report.page import write_gallery, write_report

__all__ = ["PairImages", "shard_images", "with_attention", "write_gallery", "write_report"]
