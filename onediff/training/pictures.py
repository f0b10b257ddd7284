"""What is checked about pictures before a run starts: whether they stay as they were, and whether they are seen whole."""

from __future__ import annotations

import logging

from onediff.config.addresses import is_url
from onediff.config.run import RunConfig
from onediff.data.aspect import crop_remark, first_sizes
from onediff.data.manifest import read_manifest
from onediff.errors import UserError
from onediff.runs.folder import RunFolder

log = logging.getLogger(__name__)


def require_same_fit(folder: RunFolder, before: RunConfig, config: RunConfig) -> None:
    """Raises UserError where a run with checkpoints, trained so far with `before`, would go on to see pictures otherwise.

    The weights fit all the same, so nothing else would tell; above all not where the default has changed since.
    """
    was, now = before.model.vision.picture.fit, config.model.vision.picture.fit
    if was != now and any(folder.path.glob("checkpoints/phase-*/step-*")):
        raise UserError(
            f"{folder.path}: trained so far with model.vision.picture.fit={was}, and the configuration says {now}; add "
            f"model.vision.picture.fit={was} to go on, or start another run (--run)"
        )


def warn_of_crop(config: RunConfig) -> None:
    """One line for each data set of local shards of whose pictures `fit: crop` would cut away much; by headers alone."""
    picture = config.model.vision.picture
    if picture.fit != "crop":
        return
    for name in dict.fromkeys(name for phase in config.phases.values() for name in phase.mix):
        data_set = config.data.sets[name].folder
        if not is_url(str(data_set)) and (remark := crop_remark(first_sizes(read_manifest(data_set)), picture)):
            log.warning("data.sets.%s: %s", name, remark)
