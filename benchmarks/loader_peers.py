"""Peers that read the pairs of `loader.py`: each function yields the sizes of an endless series of batches.

Those whose names end in `_fast` decode as this project does, with simplejpeg and torch's antialiased scaling. The others
decode as most users do, with Pillow and the Hugging Face CLIP processor.
"""

from __future__ import annotations

import io
import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

SIZE, BATCH = 336, 8
THREADS = 2
"""Threads of SPDL's pipeline."""
PACKAGES = {
    "webdataset": "webdataset",
    "webdataset_fast": "webdataset",
    "torchvision_fast": "torchvision.transforms.v2",
    "energon": "megatron.energon",
    "streaming": "streaming",
    "spdl_fast": "spdl.pipeline",
    "litdata": "litdata",
    "litdata_fast": "litdata",
    "grain": "grain",
    "grain_fast": "grain",
}
"""The package that each way imports."""


def processor() -> Callable[[bytes, bytes], Any]:
    """Converts two encoded images to normalised tensors, as open_clip and LLaVA do."""
    import torch
    from transformers import CLIPImageProcessorPil

    torch.set_num_threads(1)
    made = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})

    def tensors(before: bytes, after: bytes) -> Any:
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in (before, after)]
        return made(images, return_tensors="pt")["pixel_values"]

    return tensors


def fast_processor() -> Callable[[bytes, bytes], Any]:
    """Converts two encoded images to their central squares, `[2, 3, 336, 336]` uint8."""
    import simplejpeg
    import torch
    from torch.nn.functional import interpolate

    torch.set_num_threads(1)

    def square(data: bytes) -> Any:
        image = torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)[None]
        height, width = image.shape[2:]
        scale = SIZE / min(height, width)
        size = (round(height * scale), round(width * scale))
        image = interpolate(image, size, mode="bicubic", antialias=True)[0]
        top, left = (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
        return image[:, top : top + SIZE, left : left + SIZE]

    return lambda before, after: torch.stack([square(before), square(after)])


def batched(samples: Iterator[tuple[bytes, bytes]], make: Callable[[], Any] = processor) -> Iterator[int]:
    import torch

    tensors = make()
    while True:
        batch = torch.stack([tensors(*next(samples)) for _ in range(BATCH)])
        yield len(batch)


def shuffled_tars(folder: Path) -> Iterator[tuple[bytes, bytes]]:
    """The pairs in the shards, as webdataset shuffles them."""
    import webdataset

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = webdataset.WebDataset(shards, shardshuffle=100).shuffle(1000).repeat()
    return ((sample["before.jpg"], sample["after.jpg"]) for sample in data)


def read_webdataset(folder: Path) -> Iterator[int]:
    return batched(shuffled_tars(folder))


def read_webdataset_fast(folder: Path) -> Iterator[int]:
    """webdataset in torch's DataLoader, which makes the batches."""
    import torch
    import webdataset
    from torch.utils.data import DataLoader

    tensors = fast_processor()
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = webdataset.WebDataset(shards, shardshuffle=100).shuffle(1000).repeat()
    data = data.map(lambda sample: tensors(sample["before.jpg"], sample["after.jpg"]))
    return (len(batch) for batch in DataLoader(data, batch_size=BATCH, collate_fn=torch.stack))


def read_torchvision_fast(folder: Path) -> Iterator[int]:
    """The same with torchvision's transforms."""
    import simplejpeg
    import torch
    import webdataset
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    bicubic = v2.Resize(SIZE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    square = v2.Compose([bicubic, v2.CenterCrop(SIZE)])

    def decoded(data: bytes) -> Any:
        return square(torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1))

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = webdataset.WebDataset(shards, shardshuffle=100).shuffle(1000).repeat()
    data = data.map(lambda sample: torch.stack([decoded(sample["before.jpg"]), decoded(sample["after.jpg"])]))
    return (len(batch) for batch in DataLoader(data, batch_size=BATCH, collate_fn=torch.stack))


def read_spdl_fast(folder: Path) -> Iterator[int]:
    """Threads in this process, since the decoders release the GIL. SPDL's own decoder needs FFmpeg's libraries."""
    import torch
    from spdl.pipeline import PipelineBuilder

    tensors = fast_processor()
    pipeline = (
        PipelineBuilder()
        .add_source(shuffled_tars(folder))
        .pipe(lambda pair: tensors(*pair), concurrency=THREADS)
        .aggregate(BATCH)
        .pipe(torch.stack)
        .add_sink(2)
        .build(num_threads=THREADS)
    )
    with pipeline.auto_stop():
        for batch in pipeline:
            yield len(batch)


def litdata_pairs(folder: Path) -> Iterator[tuple[bytes, bytes]]:
    from litdata import StreamingDataset

    data = StreamingDataset(str(folder.parent / "litdata"), shuffle=True)
    return ((sample["before"], sample["after"]) for _ in itertools.count() for sample in data)


def read_litdata(folder: Path) -> Iterator[int]:
    return batched(litdata_pairs(folder))


def read_litdata_fast(folder: Path) -> Iterator[int]:
    return batched(litdata_pairs(folder), fast_processor)


def grain_batches(folder: Path, make: Callable[[], Any]) -> Iterator[int]:
    """Grain's `MapDataset` over records with before and after concatenated."""
    import grain

    tensors = make()

    def decoded(record: bytes) -> Any:
        length = int.from_bytes(record[:4], "little")
        return tensors(record[4 : 4 + length], record[4 + length :]).numpy()

    source = grain.sources.ArrayRecordDataSource([str(folder.parent / "pairs.array_record")])
    data = grain.MapDataset.source(source).seed(0).shuffle().repeat().map(decoded).batch(BATCH)
    # By default it reads ahead in sixteen threads.
    read = data.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=4))
    return (len(batch) for batch in read)


def read_grain(folder: Path) -> Iterator[int]:
    return grain_batches(folder, processor)


def read_grain_fast(folder: Path) -> Iterator[int]:
    return grain_batches(folder, fast_processor)


def read_streaming(folder: Path) -> Iterator[int]:
    from streaming import StreamingDataset

    data = StreamingDataset(local=str(folder.parent / "mds"), shuffle=True, batch_size=BATCH)
    return batched((sample["before"], sample["after"]) for _ in itertools.count() for sample in data)


def read_energon(folder: Path) -> Iterator[int]:
    from dataclasses import dataclass

    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        Sample,
        WorkerConfig,
        basic_sample_keys,
        get_loader,
        get_train_dataset,
        stateless,
    )

    @dataclass
    class Pair(Sample):
        before: bytes
        after: bytes

    @stateless
    def cook(sample: Any) -> Pair:
        return Pair(**basic_sample_keys(sample), before=sample["before.jpg"], after=sample["after.jpg"])

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc, type-arg]
        cookers = [Cooker(cook)]
        decoder = None

    data = get_train_dataset(
        str(folder),
        batch_size=None,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        task_encoder=Encoder(),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
    )
    return batched((sample.before, sample.after) for sample in get_loader(data))


def present(way: str, python: Path) -> bool:
    """Whether `python` has the package of a way."""
    code = f"import {PACKAGES[way]}"
    return not subprocess.run([str(python), "-c", code], capture_output=True, timeout=300, check=False).returncode
