"""Prepares a run's folder before training: configuration, tokenizer, and checks of the image settings."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress

from onediff.config.addresses import is_url
from onediff.config.compose import load_run, write_run
from onediff.config.difference import differences, flat, in_one_line
from onediff.config.model import ImageConfig, NewTokenizer
from onediff.config.run import RunConfig
from onediff.data.aspect import crop_remark, first_sizes
from onediff.data.manifest import read_manifest
from onediff.errors import UserError
from onediff.runs.folder import RunFolder
from onediff.training.data import make_tokenizer

log = logging.getLogger(__name__)


def prepare(folder: RunFolder, config: RunConfig) -> None:
    """Creates the run folder; writes the configuration and, if the run has its own, the tokenizer."""
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.config.is_file() and (before := load_run(folder.config)) != config:
        require_same_images(folder, before.model.vision.image, config.model.vision.image)
        # The settings of the finished phases must stay on record.
        number = 1 + len(list(folder.path.glob("config.before-*.yaml")))
        shutil.copyfile(folder.config, folder.path / f"config.before-{number}.yaml")
        changed = differences(*(flat(one.model_dump(mode="json")) for one in (before, config)))
        log.warning(
            "settings change: %s; the previous ones are kept as config.before-%d.yaml", in_one_line(changed), number
        )
    warn_of_crop(config)
    write_run(config, folder.config)
    wanted = config.model.language.tokenizer
    if isinstance(wanted, NewTokenizer) and not folder.tokenizer.is_dir():
        aside = folder.path / ".tmp-tokenizer"
        shutil.rmtree(aside, ignore_errors=True)
        make_tokenizer(config, wanted, aside)
        aside.rename(folder.tokenizer)


def require_same_images(folder: RunFolder, before: ImageConfig, image: ImageConfig) -> None:
    """Raises UserError if a run with checkpoints, so far trained with `before`, would now process images differently.

    The weights fit either way, so nothing else would notice such a change, for example of a default.
    """
    was, now = _what_counts(before), _what_counts(image)
    changed = next((key for key in was if was[key] != now.get(key)), None)
    if changed and any(folder.path.glob("checkpoints/phase-*/step-*")):
        key, value = f"model.vision.image.{changed}", was[changed]
        raise UserError(
            f"{folder.path}: so far trained with {key}={value}, but the configuration has {now.get(changed)}; add "
            f"{key}={value} to continue, or start another run (--run)"
        )


def _what_counts(image: ImageConfig) -> dict[str, object]:
    """The settings that determine the tower's input; `max_tiles` and `max_patches` only if the fit uses them."""
    unread = {"tiles": {"max_patches"}, "native": {"max_tiles", "size"}}
    left_out = unread.get(image.fit, {"max_tiles", "max_patches"})
    return {key: value for key, value in image.model_dump(mode="json").items() if key not in left_out}


def warn_of_crop(config: RunConfig) -> None:
    """Logs one line for each data set of local shards whose images `fit: crop` would crop heavily; reads headers only.

    Passes over what cannot be read: a phase that is not trained now may be without its data, and one that is reports it.
    """
    image = config.model.vision.image
    if image.fit != "crop":
        return
    for name in dict.fromkeys(name for phase in config.phases.values() for name in phase.mix):
        data_set = config.data.sets[name].folder
        with suppress(UserError):
            if not is_url(str(data_set)) and (remark := crop_remark(first_sizes(read_manifest(data_set)), image)):
                log.warning("data.sets.%s: %s", name, remark)
