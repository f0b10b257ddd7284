"""One self-contained HTML page about a set of captions: scores beside published ones, and the pairs themselves."""

from onediff.evaluation.report.page import write_gallery, write_report
from onediff.evaluation.report.pictures import PairPictures, shard_pictures, with_heat

__all__ = ["PairPictures", "shard_pictures", "with_heat", "write_gallery", "write_report"]
