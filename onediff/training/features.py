"""Features of a run's frozen tower: written before training, and compared with its weights when training begins."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from onediff.atomic import aside, put_back, replace_folder
from onediff.config.data import DataConfig
from onediff.config.model import ImageConfig
from onediff.config.run import RunConfig
from onediff.config.training import InitConfig
from onediff.data.features import DTYPES, FeatureFormat, Features, identity
from onediff.data.fits import fit_of
from onediff.data.manifest import FILE, Manifest, Shard, file_sha256, read_manifest, write_manifest
from onediff.data.rows import encoded
from onediff.data.sample import BadSample, parse_sample
from onediff.data.stream import Source, Stream
from onediff.model.onediff import OneDiffModel
from onediff.model.vision import VisionTower, side_of
from onediff.parallel.agreement import raise_on_all_ranks
from onediff.parallel.weights import weights_digest
from onediff.progress import progress
from onediff.training.init import Start

log = logging.getLogger(__name__)

VIEWS = 32
"""Number of images that the tower processes at a time."""


def feature_format(config: RunConfig, tower: VisionTower, digest: str) -> FeatureFormat:
    """The format of the features that a run reads."""
    return FeatureFormat(
        layers=tower.layers,
        tokens=tower.tokens,
        width=tower.width,
        precision=config.training.precision,
        image=config.model.vision.image.model_dump(mode="json"),
        pixels=config.data.pixels,
        tower=digest,
    )


def check_features(stream: Stream, tower: VisionTower, config: RunConfig) -> None:
    """Raises UserError on every rank if features that the stream reads are not this tower's. Collective."""
    kept = {source.name: source.features for source in stream.sources if source.features is not None}
    if not kept:
        return
    wanted = feature_format(config, tower, weights_digest(tower.model, DTYPES[config.training.precision]))
    with raise_on_all_ranks():
        for name, features in kept.items():
            features.format.check(wanted, f"data.sets.{name}.features")
    if not dist.is_initialized() or dist.get_rank() == 0:
        log.info("the vision tower is not run: its features of %s are read from disk", ", ".join(kept))


def frozen_tower(config: RunConfig, device: torch.device) -> tuple[VisionTower, str]:
    """The tower that a run begins with, in training precision, and the digest of its weights. Raises UserError."""
    torch.manual_seed(config.training.seed)  # a tower with random weights gets the same ones as in training
    dtype = DTYPES[config.training.precision]
    if config.init is not None and config.init.vision is not None:
        vision = InitConfig(vision=config.init.vision)
        start = Start(config.model_copy(update={"init": vision}), Path())
        model = OneDiffModel(start.model, norms="plain")
        start.fill(model, None)
        tower = model.vision
    else:
        tower = VisionTower(config.model.vision)
    tower.model.to(dtype)
    return tower.to(device).eval(), weights_digest(tower.model, dtype)


def write_features(config: RunConfig, name: str, tower: VisionTower, digest: str, overwrite: bool = False) -> Manifest:
    """Writes the features of the data set `name`, shard by shard; returns their manifest.

    Keeps the shards of an interrupted call, and a finished folder of the same features. Raises UserError for a folder with
    other features unless `overwrite`.
    """
    data_set = config.data.sets[name]
    assert data_set.features_folder is not None
    folder, format = Path(data_set.features_folder), feature_format(config, tower, digest)
    source = Source.open(name, data_set.folder, 1, 0, 1, cache=config.data.cache)
    wanted = source.shards.shards
    put_back(folder)
    if (folder / FILE).exists() and not overwrite:
        Features.open(folder, source.shards).format.check(format, folder)
        return read_manifest(folder)
    of = {"format": format.fields(), "of": {shard.name: identity(shard, source.shards.folder) for shard in wanted}}
    key = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]
    work = folder.with_name(f".tmp-{folder.name}-{key}")
    work.mkdir(parents=True, exist_ok=True)
    made = []
    with progress(source.lanes.samples, f"features of {name}", "samples") as bar:
        for number, shard in enumerate(wanted):
            path = work / shard.name
            if path.is_file():
                bar.update(shard.samples)
            else:
                _write_shard(path, _members(source, number, config.model.vision.image, config.data, tower), bar.update)
            made.append(Shard(shard.name, shard.samples, path.stat().st_size, file_sha256(path)))
    manifest = Manifest(work, name, data_set.split, tuple(made), source="features", extra={"features": of})
    write_manifest(manifest)
    replace_folder(work, folder)
    return read_manifest(folder)


def _members(
    source: Source, shard: int, image: ImageConfig, data: DataConfig, tower: VisionTower
) -> Iterator[tuple[str, bytes]]:
    """Suffix and bytes of each sample of a shard, in order; the tower processes the images of several samples at a time."""
    fit = fit_of(image, side_of(tower.model.config.patch_size))
    waiting: list[torch.Tensor | BadSample] = []
    for number in range(source.lanes.shard_samples[shard]):
        try:
            images = encoded(parse_sample(source.shards.read(shard, number)))
            waiting.append(torch.from_numpy(fit.read(images, data.max_pixels, data.pixels).images))
        except BadSample as bad:
            waiting.append(bad)
        if sum(len(views) for views in waiting if isinstance(views, torch.Tensor)) >= VIEWS:
            yield from _seen(waiting, tower)
            waiting = []
    yield from _seen(waiting, tower)


@torch.no_grad()
def _seen(waiting: list[torch.Tensor | BadSample], tower: VisionTower) -> Iterator[tuple[str, bytes]]:
    views = [views for views in waiting if isinstance(views, torch.Tensor)]
    together = torch.cat(views) if views else torch.empty(0)
    layers: Iterator[torch.Tensor] = iter(())
    if len(together):
        given = tower.all_layers(together.to(next(tower.parameters()).device)).cpu()
        layers = iter(given.split([len(one) for one in views]))
    for one in waiting:
        if isinstance(one, BadSample):
            yield "bad", json.dumps([one.kind, one.reason]).encode()
        else:
            found = next(layers, torch.empty(0))
            yield "features", found.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _write_shard(path: Path, members: Iterator[tuple[str, bytes]], done: Callable[[], object]) -> None:
    """Writes a tar whose bytes depend on its members only; it gets its name once it is complete."""
    temporary = aside(path)
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (suffix, content) in enumerate(members):
            entry = tarfile.TarInfo(f"{number:08d}.{suffix}")
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
            done()
    os.replace(temporary, path)
