"""What is checked about images before a run starts: whether they stay as they were, and whether they are seen whole."""

from __future__ import annotations

import logging

from onediff.config.addresses import is_url
from onediff.config.model import ImageConfig
from onediff.config.run import RunConfig
from onediff.data.aspect import crop_remark, first_sizes
from onediff.data.manifest import read_manifest
from onediff.errors import UserError
from onediff.runs.folder import RunFolder

log = logging.getLogger(__name__)


def require_same_images(folder: RunFolder, before: RunConfig, config: RunConfig) -> None:
    """Raises UserError where a run with checkpoints, trained so far with `before`, would go on to see images otherwise.

    The weights fit all the same, so nothing else would tell; above all not where the default has changed since.
    """
    was, now = (_what_counts(one.model.vision.image) for one in (before, config))
    changed = next((key for key in was if was[key] != now.get(key)), None)
    if changed and any(folder.path.glob("checkpoints/phase-*/step-*")):
        key, value = f"model.vision.image.{changed}", was[changed]
        raise UserError(
            f"{folder.path}: trained so far with {key}={value}, and the configuration says {now.get(changed)}; add "
            f"{key}={value} to go on, or start another run (--run)"
        )


def _what_counts(image: ImageConfig) -> dict[str, object]:
    """The settings that decide what the tower sees: of `max_tiles` and `max_patches`, the one that goes with the fit."""
    unread = {"tiles": {"max_patches"}, "native": {"max_tiles", "size"}}
    left_out = unread.get(image.fit, {"max_tiles", "max_patches"})
    return {key: value for key, value in image.model_dump(mode="json").items() if key not in left_out}


def warn_of_crop(config: RunConfig) -> None:
    """One line for each data set of local shards of whose images `fit: crop` would cut away much; by headers alone."""
    image = config.model.vision.image
    if image.fit != "crop":
        return
    for name in dict.fromkeys(name for phase in config.phases.values() for name in phase.mix):
        data_set = config.data.sets[name].folder
        if not is_url(str(data_set)) and (remark := crop_remark(first_sizes(read_manifest(data_set)), image)):
            log.warning("data.sets.%s: %s", name, remark)
