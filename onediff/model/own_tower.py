"""Vision towers that other packages provide, as subclasses of transformers' `PreTrainedModel`."""

from __future__ import annotations

from typing import Any

from onediff.config.model import VisionConfig
from onediff.config.plugins import TOWERS
from onediff.config.towers import ANY_SIZE, ONE_SIZE, OWN_SHAPE
from onediff.errors import UserError
from onediff.model.lean import transformers


def register_own_tower(config: VisionConfig) -> None:
    """Registers the tower's class with transformers if an installed package provides its type.

    Raises UserError if the class cannot be imported, or does not belong to the type.
    """
    provided = TOWERS.provided().keys() - {*ONE_SIZE, *ANY_SIZE, *OWN_SHAPE}
    kind = _model_type(config) if provided else None
    if kind not in provided:
        return
    tower = TOWERS.load(kind)
    arch = getattr(tower, "config_class", None)
    if getattr(arch, "model_type", None) != kind:
        raise UserError(
            f"vision tower {kind!r}: {tower!r} must be a transformers.PreTrainedModel with a `config_class` whose "
            f"`model_type` is {kind!r}"
        )
    transformers.AutoConfig.register(kind, arch, exist_ok=True)
    transformers.AutoModel.register(arch, tower, exist_ok=True)


def _model_type(config: VisionConfig) -> Any:
    """The tower's `model_type`; None if its `config.json` cannot be read, which the caller reports."""
    fields = config.config
    if fields is None:
        assert config.name is not None
        try:
            fields, _ = transformers.PretrainedConfig.get_config_dict(config.name, revision=config.revision)
        except (OSError, ValueError):
            return None
    return fields.get("vision_config", fields).get("model_type")
