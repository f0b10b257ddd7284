"""Tiny data sets and processors for the tests of the data stream."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from onediff.config.data import DataConfig, PromptConfig
from onediff.config.model import ImageConfig, LanguageConfig
from onediff.data.cursor import LaneCursor
from onediff.data.loader import RankShare, read_batches
from onediff.data.position import Position
from onediff.data.prompts import Prompter
from onediff.data.rows import Processor, TokenRow
from onediff.data.sample import BadSample, Fault
from onediff.data.stream import Source, Stream
from onediff.model.tokenizer import learn_tokenizer, load_tokenizer

SIZE, PATCH, IMAGE_TOKENS, DELTA_TOKENS = 8, 4, 4, 3
WORDS = "a red cube was added to the left of two small blue balls and then one more was taken away"


def png(seed: int, width: int = SIZE, height: int = SIZE) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def members(kind: str, number: int, name: str) -> dict[str, bytes]:
    """The members of one good sample by suffix: a `pair`, a `single`, or a `text`."""
    words = WORDS.split()
    caption = " ".join(words[number % 7 : number % 7 + 3 + number % 5])
    record = {"id": f"{name}/{number}", "source": name, "task": "description", "captions": [caption], "split": "train"}
    made = {"json": json.dumps(record).encode()}
    if kind == "pair":
        return {"before.png": png(2 * number), "after.png": png(2 * number + 1), **made}
    return {"png": png(number), **made} if kind == "single" else made


def spoilt(good: dict[str, bytes], fault: str) -> dict[str, bytes]:
    """A sample with one fault, given by its kind."""
    image = next((suffix for suffix in reversed(good) if suffix.endswith("png")), "")
    if fault == "bad_image":
        return {**good, image: good[image][:40] + b"\0" * 30}
    if fault == "bad_json":
        return {**good, "json": good["json"][:-9]}
    if fault == "missing_half":
        return {suffix: data for suffix, data in good.items() if suffix != "after.png"}
    assert fault == "too_many_pixels"
    return {**good, image: png(0, 200, 200)}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_set(folder: Path, sizes: Iterable[int], kind: str = "text", faults: dict[int, str] | None = None) -> Path:
    """Writes shards of these sizes without manifest or index, as other tools do. Returns the folder `folder/train`."""
    split = folder / "train"
    split.mkdir(parents=True)
    number = 0
    for shard, size in enumerate(sizes):
        with tarfile.open(split / f"part-{shard:03d}.tar", "w") as tar:
            for _ in range(size):
                sample = members(kind, number, folder.name)
                if faults and number in faults:
                    sample = spoilt(sample, faults[number])
                for suffix, data in sample.items():
                    add(tar, f"{number:06d}.{suffix}", data)
                number += 1
    return split


@lru_cache
def tokenizer():
    with TemporaryDirectory() as folder:
        learn_tokenizer([WORDS, "what has changed what is there"] * 3, 320, Path(folder))
        config = LanguageConfig(config={"model_type": "llama"}, tokenizer={"vocabulary": 320})
        return load_tokenizer(config, Path(folder))


PROMPT = PromptConfig(
    system="",
    user="U: ",
    assistant=" A:",
    instructions={"pair": "what has changed", "single": "what is there", "couple": "what is in both"},
    couple_answer="first {first} second {second}",
)


def make_processor(image: ImageConfig | None = None, patch: int = PATCH, **data: object) -> Processor:
    config = DataConfig(sets={"none": {"path": "."}}, max_pixels=10_000, prompt=PROMPT, **data)
    prompter = Prompter(tokenizer(), config.prompt, DELTA_TOKENS)
    return Processor(prompter, image or ImageConfig(size=SIZE), config, patch)


def stream(
    folders: dict[Path, float],
    lanes: int,
    couple: bool | str = False,
    seed: int = 0,
    block: int = 8,
    bad_in_a_row: int = 20,
    pack: int | None = None,
) -> Stream:
    sources = [Source.open(f.parent.name, f, lanes, seed, block, weight) for f, weight in folders.items()]
    return Stream(sources, make_processor(), couple, seed, bad_in_a_row, pack)


def global_batches(
    made: Stream, lanes: int, position: Position, steps: int, ranks: int, workers: int, micro_batch: int = 1
) -> tuple[list[list[tuple[str, ...]]], Position]:
    """Ids of the next global batches by lane, read by `ranks` loaders in turn, and the position after them."""
    found: list[dict[int, tuple[str, ...]]] = [{} for _ in range(steps)]
    lanes_after: dict[int, LaneCursor] = dict(enumerate(position.cursors))
    for rank in range(ranks):
        share = RankShare.of_rank(lanes, micro_batch, rank, ranks)
        batches = read_batches(made, micro_batch, position.cursor(share.lanes), workers, 2, 1.0)
        for step in range(steps):
            for first in range(0, len(share.lanes), micro_batch):
                batch, cursor = next(batches)
                found[step].update(zip(share.lanes[first : first + micro_batch], batch.info["ids"], strict=True))
        lanes_after.update(cursor.lanes if steps else {})
    return [[batch[lane] for lane in range(lanes)] for batch in found], moved(position, lanes_after)


def moved(position: Position, lanes: Mapping[int, LaneCursor]) -> Position:
    """The same order with new cursors for all lanes."""
    return Position(position.order, tuple(lanes[lane] for lane in range(len(position.cursors))))


def unbroken(made: Stream, lanes: int, block: int, steps: int) -> tuple[list[list[tuple[str, ...]]], list[Position]]:
    """Ids of the global batches of one rank that is never stopped, and the position before the first and after each."""
    start = Position.start(made, lanes, block)
    read = islice(read_batches(made, lanes, start.cursor(range(lanes)), 0, 2, 1.0), steps)
    batches, positions = zip(*((batch.info["ids"], moved(start, cursor.lanes)) for batch, cursor in read), strict=True)
    return list(batches), [start, *positions]


def readable(made: Stream, lane: int, index: int) -> tuple[TokenRow, int]:
    """The first readable sample of a lane from `index`, as a row with its `skipped`, and the index after it.

    Raises UserError after `bad_in_a_row` bad ones.
    """
    skipped: list[Fault] = []
    while True:
        try:
            row = made.one(lane, index)
        except BadSample as bad:
            made.skip(skipped, lane, index, bad)
            index += 1
            continue
        row.skipped = skipped
        return row, index + 1


def row_at(made: Stream, lane: int, index: int) -> TokenRow:
    """Only that row."""
    return readable(made, lane, index)[0]
