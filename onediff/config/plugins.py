"""Plugins: implementations that configuration keys select by name, and that other packages can add."""

from __future__ import annotations

from onediff.config.entry_points import Plugins

OBJECTIVES = Plugins(
    "onediff.objectives",
    "objective",
    {
        "captions": "onediff.training.objectives.captions:CaptionObjective",
        "words": "onediff.training.objectives.words:WordsObjective",
    },
)
"""`phases.<name>.objective`; see `onediff.training.objectives.Objective`."""

COUPLING_RULES = Plugins(
    "onediff.couples",
    "coupling rule",
    {"similar_captions": "onediff.data.coupling:similar_captions"},
    "; or true, for random couples",
)
"""`phases.<name>.couple`; see `onediff.data.coupling.Rule`."""

METRICS = Plugins(
    "onediff.metrics",
    "metric",
    {
        "items": "onediff.evaluation.metrics.items:METRIC",
        "bleu": "onediff.evaluation.metrics.bleu:METRIC",
        "meteor": "onediff.evaluation.metrics.meteor:METRIC",
        "rouge": "onediff.evaluation.metrics.rouge:METRIC",
        "cider": "onediff.evaluation.metrics.cider:METRIC",
        "change-type": "onediff.evaluation.metrics.change_type:METRIC",
        "spice": "onediff.evaluation.metrics.spice:METRIC",
        "bertscore": "onediff.evaluation.metrics.bertscore:METRIC",
        "clipscore": "onediff.evaluation.metrics.clipscore:METRIC",
        "pacscore": "onediff.evaluation.metrics.pacscore:METRIC",
    },
)
"""`evaluation.metrics`, each possibly followed by `:MODEL`; see `onediff.evaluation.metrics.Metric`."""

DELTA_MODULES = Plugins(
    "onediff.deltas",
    "delta module",
    {"vdm": "onediff.model.delta:DeltaModule", "residual": "onediff.model.residual_delta:ResidualDelta"},
)
"""`model.delta.kind`; subclasses of `onediff.model.delta.DeltaModule`."""

TOWERS = Plugins("onediff.towers", "vision tower", {})
"""`model_type` of `model.vision`, in addition to the types of `onediff.config.towers`; see `onediff.model.own_tower`."""
