"""A sample: the JSON record and the images of one WebDataset key, read from and written to tar members.

A pair has `<key>.before.<jpg|png|webp>`, `<key>.after.…` and `<key>.json`; a single image has `<key>.<jpg|…>` and
`<key>.json`; a text has only `<key>.json`. This module decodes no images and does not need torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
KINDS = ("truncated", "no_json", "bad_json", "bad_schema", "no_caption", "missing_half", "no_image", "bad_image")


class BadSample(ValueError):
    """A sample that cannot be used. Counts are kept by `kind`; `reason` is for people.

    This module raises the kinds in `KINDS`; readers of raw data sets add their own. `notes` are counted even though the
    sample is not written.
    """

    def __init__(self, kind: str, reason: str, notes: tuple[str, ...] = ()) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason
        self.notes = notes

    def __str__(self) -> str:
        return f"{self.reason} ({self.kind})"


class Fault(NamedTuple):
    """A skipped sample."""

    kind: str
    shard: str
    """Data set and file name."""
    what: str
    """The sample's index in the shard, and the reason."""


@dataclass(frozen=True)
class Sample:
    """One sample. `images` maps roles to encoded bytes: `before` and `after`, or `image`, or nothing for text.

    Exactly one of `captions` and `conversations` (turns `{"from", "value"}`) is non-empty. If `key` is empty, the writer
    chooses one. `meta` is free-form; `meta["change_type"]` is the type of change, if known.
    """

    id: str
    source: str
    task: str
    split: str
    captions: tuple[str, ...] = ()
    conversations: tuple[dict[str, str], ...] = ()
    instruction: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    key: str = ""

    @property
    def is_pair(self) -> bool:
        return "before" in self.images

    def record(self) -> dict[str, Any]:
        """The JSON record, without empty fields."""
        record: dict[str, Any] = {"id": self.id, "source": self.source, "task": self.task}
        if self.captions:
            record["captions"] = list(self.captions)
        if self.conversations:
            record["conversations"] = list(self.conversations)
        if self.instruction is not None:
            record["instruction"] = self.instruction
        return {**record, "split": self.split, "meta": self.meta}


def image_suffix(data: bytes) -> str | None:
    """The suffix of an encoded image, by its first bytes: `jpg`, `png`, `webp`, or None for anything else."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def encode_sample(sample: Sample, key: str | None = None) -> list[tuple[str, bytes]]:
    """The tar members `(name, data)` of a sample, images first. Raises `BadSample` if the sample is invalid."""
    key = key or sample.key
    if not key or "." in key or key != key.strip("/ "):
        raise BadSample("bad_schema", f"key {key!r} must be non-empty, without dots and without slashes at its ends")
    check_roles(sample.images)
    check_record(sample.record())
    members = []
    for role in ("before", "after", "image"):
        if role in sample.images:
            suffix = image_suffix(sample.images[role])
            if suffix is None:
                raise BadSample("bad_image", f"image {role!r} is not JPEG, PNG or WebP")
            members.append((f"{key}.{suffix}" if role == "image" else f"{key}.{role}.{suffix}", sample.images[role]))
    text = json.dumps(sample.record(), ensure_ascii=False, separators=(",", ":"))
    return [*members, (f"{key}.json", text.encode())]


def parse_sample(members: Mapping[str, bytes], key: str = "") -> Sample:
    """Parses the sample of one key from its members by suffix (`{"before.jpg": …, "after.jpg": …, "json": …}`).

    Ignores members with other suffixes. Raises `BadSample`.
    """
    if "json" not in members:
        raise BadSample("no_json", f"the sample has no .json, only {', '.join(sorted(members)) or 'nothing'}")
    try:
        record = json.loads(members["json"])
    except ValueError as error:
        raise BadSample("bad_json", f"the .json cannot be read: {error}") from error
    images: dict[str, bytes] = {}
    for suffix, data in members.items():
        role, _, extension = suffix.rpartition(".")
        if extension in IMAGE_SUFFIXES and role in ("", "before", "after", "image"):
            if images.setdefault(role or "image", data) is not data:
                raise BadSample("bad_schema", f"the sample has two images for {role or 'image'!r}")
            if not data:
                raise BadSample("bad_image", f"the image .{suffix} is empty")
    check_roles(images)
    check_record(record)
    task = record["task"]
    if not images and (task in ("difference", "pair") or "<image>" in members["json"].decode(errors="replace")):
        raise BadSample("no_image", f"a sample of task {task!r} has no image")
    return Sample(
        id=str(record["id"]),
        source=record["source"],
        task=task,
        split=record["split"],
        captions=tuple(record.get("captions", ())),
        conversations=tuple(record.get("conversations", ())),
        instruction=record.get("instruction"),
        meta=record.get("meta", {}),
        images=images,
        key=key,
    )


def check_roles(images: Mapping[str, bytes]) -> None:
    """Raises `BadSample` unless the images are a pair, a single image, or none."""
    halves = {"before", "after"} & set(images)
    if len(halves) == 1:
        have = halves.pop()
        raise BadSample("missing_half", f"the pair has only its {have!r} image")
    if halves and "image" in images:
        raise BadSample("bad_schema", "the sample has a pair and a single image")


def check_record(record: Any) -> None:
    """Raises `BadSample` if the JSON record is invalid."""
    if not isinstance(record, dict):
        raise BadSample("bad_schema", f"the .json is a {type(record).__name__}, not an object")
    for name in ("source", "task", "split"):
        if not isinstance(record.get(name), str):
            raise BadSample("bad_schema", f"field {name!r} must be a string, not {record.get(name)!r}")
    if not isinstance(record.get("id"), (str, int)):
        raise BadSample("bad_schema", f"field 'id' must be a string, not {record.get('id')!r}")
    if not isinstance(record.get("instruction"), (str, type(None))):
        raise BadSample("bad_schema", "field 'instruction' must be a string")
    if not isinstance(record.get("meta", {}), dict):
        raise BadSample("bad_schema", "field 'meta' must be an object")
    captions, turns = record.get("captions"), record.get("conversations")
    if captions and turns:
        raise BadSample("bad_schema", "the sample has both 'captions' and 'conversations'")
    if turns:
        check_turns(turns)
        return
    if not captions:
        raise BadSample("no_caption", "the sample has neither captions nor conversations")
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise BadSample("bad_schema", "field 'captions' must be a list of strings")
    if not all(caption.strip() for caption in captions):
        raise BadSample("no_caption", "a caption is empty")


def check_turns(turns: Any) -> None:
    """Raises `BadSample` unless `turns` is a list of `{"from", "value"}` with at least one answer to learn."""
    well_formed = isinstance(turns, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)
        for turn in turns
    )
    if not well_formed:
        raise BadSample("bad_schema", 'field \'conversations\' must be a list of {"from", "value"}')
    if not any(turn["from"] == "gpt" and turn["value"].strip() for turn in turns):
        raise BadSample("no_caption", "the conversation has no answer")


def change_list(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """The change list in `meta`, without boxes and masks, or None."""
    parts = {key: meta.get(key) for key in ("changes", "before", "after")}
    if not all(isinstance(part, list) and all(isinstance(one, dict) for one in part) for part in parts.values()):
        return None
    left_out = ("box", "mask")
    return {
        key: [{name: value for name, value in one.items() if name not in left_out} for one in part or ()]
        for key, part in parts.items()
    }
