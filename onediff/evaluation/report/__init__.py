"""One self-contained HTML page about a set of captions: scores beside published ones, and the pairs themselves."""

from onediff.evaluation.report.page import write_report
from onediff.evaluation.report.pictures import PairPictures, shard_pictures

__all__ = ["PairPictures", "shard_pictures", "write_report"]
