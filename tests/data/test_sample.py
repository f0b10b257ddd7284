"""onediff.data.sample: valid samples, and the kind of each fault."""

import json
import pickle
from typing import Any

import pytest
from raw_data import encoded

from onediff.data.sample import KINDS, BadSample, Sample, encode_sample, image_suffix, parse_sample

JPG, PNG, WEBP = encoded(1, "JPEG"), encoded(1, "PNG"), encoded(1, "WEBP")
RECORD = {"id": "1", "source": "s", "task": "pair", "captions": ["it moved"], "split": "train", "meta": {}}
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]


@pytest.mark.parametrize(
    ("sample", "names"),
    [
        (
            Sample("é1", "s", "pair", "train", ("a", "b"), meta={"x": [1]}, images={"before": JPG, "after": PNG}),
            ["k.before.jpg", "k.after.png", "k.json"],
        ),
        (Sample("1", "s", "single", "val", ("a",), instruction="say", images={"image": WEBP}), ["k.webp", "k.json"]),
        (Sample("1", "s", "conversation", "train", conversations=tuple(TURNS[1:])), ["k.json"]),
    ],
)
def test_an_encoded_sample_is_parsed_to_the_same_sample(sample: Sample, names: list[str]) -> None:
    members = encode_sample(sample, "k")
    assert [name for name, _ in members] == names
    again = parse_sample({name.partition(".")[2]: data for name, data in members}, "k")
    assert again == Sample(**{**vars(sample), "key": "k"})
    assert again.is_pair == (sample.task == "pair")


def members(record: Any = RECORD, **files: bytes) -> dict[str, bytes]:
    images = {name.replace("_", "."): data for name, data in files.items()}
    return {**images, "json": record if isinstance(record, bytes) else json.dumps(record).encode()}


PAIR = {"before_jpg": JPG, "after_jpg": JPG}


@pytest.mark.parametrize(
    ("parts", "kind", "reason"),
    [
        ({"before.jpg": JPG}, "no_json", "the sample has no .json, only before.jpg"),
        (members(b"{", **PAIR), "bad_json", "the .json cannot be read"),
        (members(b"\xff", **PAIR), "bad_json", "the .json cannot be read"),
        (members([1], **PAIR), "bad_schema", "a list, not an object"),
        (members(before_jpg=JPG), "missing_half", "the pair has only its 'before' image"),
        (members(after_png=PNG), "missing_half", "the pair has only its 'after' image"),
        (members(), "no_image", "a sample of task 'pair' has no image"),
        (members(jpg=JPG, **PAIR), "bad_schema", "a pair and a single image"),
        (members(before_png=PNG, **PAIR), "bad_schema", "two images for 'before'"),
        (members(before_jpg=b"", after_jpg=JPG), "bad_image", "the image .before.jpg is empty"),
        (members({**RECORD, "captions": []}, **PAIR), "no_caption", "neither captions nor conversations"),
        (members({**RECORD, "captions": ["a", " "]}, **PAIR), "no_caption", "a caption is empty"),
        (members({**RECORD, "captions": "a"}, **PAIR), "bad_schema", "must be a list of strings"),
        (members({**RECORD, "captions": [3]}, **PAIR), "bad_schema", "must be a list of strings"),
        (members({**RECORD, "source": None}, **PAIR), "bad_schema", "field 'source' must be a string"),
        (members({**RECORD, "id": 1.5}, **PAIR), "bad_schema", "field 'id' must be a string"),
        (members({**RECORD, "meta": 3}, **PAIR), "bad_schema", "field 'meta' must be an object"),
        (members({**RECORD, "instruction": 3}, **PAIR), "bad_schema", "field 'instruction' must be a string"),
        (members({**RECORD, "conversations": TURNS}, **PAIR), "bad_schema", "both 'captions' and 'conversations'"),
        (members({**RECORD, "captions": [], "conversations": [{"from": "gpt"}]}), "bad_schema", "must be a list of {"),
        (
            members({**RECORD, "captions": [], "conversations": TURNS[:1]}),
            "no_caption",
            "the conversation has no answer",
        ),
        (members({**RECORD, "task": "x", "captions": [], "conversations": TURNS}), "no_image", "has no image"),
    ],
)
def test_every_fault_has_a_kind_and_a_reason(parts: dict[str, bytes], kind: str, reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        parse_sample(parts)
    assert caught.value.kind == kind
    assert kind in KINDS
    assert reason in caught.value.reason


@pytest.mark.parametrize("key", ["", "a.b", "/a", "a/", " a"])
def test_keys_that_tars_would_split_elsewhere_are_refused(key: str) -> None:
    with pytest.raises(BadSample, match="key"):
        encode_sample(Sample("1", "s", "single", "train", ("a",), images={"image": JPG}), key)


def test_an_image_of_another_format_is_not_written() -> None:
    with pytest.raises(BadSample, match="image 'image' is not JPEG, PNG or WebP"):
        encode_sample(Sample("1", "s", "single", "train", ("a",), images={"image": encoded(1, "GIF")}), "k")
    assert [image_suffix(data) for data in (JPG, PNG, WEBP, b"")] == ["jpg", "png", "webp", None]


def test_a_bad_sample_can_be_sent_between_processes() -> None:
    again = pickle.loads(pickle.dumps(BadSample("no_caption", "row 3")))
    assert (again.kind, again.reason, str(again)) == ("no_caption", "row 3", "row 3 (no_caption)")
