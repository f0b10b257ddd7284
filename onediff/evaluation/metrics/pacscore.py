"""PAC-S and RefPAC-S (Sarto et al., CVPR 2023): CLIPScore's formulas with weight 2, in a CLIP tuned for judging captions.

The authors publish their checkpoints at https://github.com/aimagelab/pacscore, in OpenAI's format; `MODEL` is one of them
converted to a `CLIPModel` of transformers. With any other CLIP, scores are not comparable with published ones.
"""

from __future__ import annotations

from onediff.evaluation.metrics.clipscore import ClipScore


class PacScore(ClipScore):
    """A pair's row: 1, PAC-S, RefPAC-S."""

    name = "pacscore"
    titles = scores = ("PAC-S", "RefPAC-S")
    weight = 2.0


METRIC = PacScore()
