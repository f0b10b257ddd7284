"""The same model with fewer layers of each kind, enough to compare the collectives of two ranks."""

from __future__ import annotations

from typing import Any

from onediff.config.model import ModelConfig, VisionConfig
from onediff.config.run import RunConfig
from onediff.model.build import architecture_only


def shallow(config: RunConfig, layers: int) -> RunConfig:
    """The configuration with `layers` language model layers, and only as many tower and delta layers as the levels need.

    Leaves the tower unchanged if only its last layers train.
    """
    model = architecture_only(config.model)
    fields = dict(model.language.config or {})
    fields["num_hidden_layers"] = min(layers, fields["num_hidden_layers"])
    if fields.get("layer_types"):
        fields["layer_types"] = fields["layer_types"][:layers]
    some_layers = any(phase.vision_last is not None for phase in config.phases.values())
    parts: dict[str, Any] = {
        "language": model.language.model_copy(update={"config": fields}),
        "delta": model.delta.model_copy(
            update={"layers": min(model.delta.layers, max(layers, len(model.vision.levels)))}
        ),
        "vision": model.vision if some_layers else shallow_tower(model.vision),
    }
    return config.model_copy(update={"model": ModelConfig.model_validate(model.model_copy(update=parts).model_dump())})


def shallow_tower(vision: VisionConfig) -> VisionConfig:
    """The tower with its levels moved next to each other.

    Levels 8, 16 and 24 of 24 layers with the output of layer 23 become levels 2, 3 and 5 of 5 layers with the output of
    layer 4.
    """
    depth = (vision.config or {}).get("num_hidden_layers")
    if not isinstance(depth, int):
        return vision
    output = vision.output_level % (depth + 1)
    from_end = sorted({depth - level for level in (*vision.levels, output)})
    place = {old: new for new, old in enumerate(from_end, start=min(from_end[0], 1))}
    kept = max(place.values()) + 2
    if kept >= depth:
        return vision
    return vision.model_copy(
        update={
            "config": {**(vision.config or {}), "num_hidden_layers": kept},
            "levels": tuple(kept - place[depth - level] for level in vision.levels),
            "output_level": kept - place[depth - output],
        }
    )
