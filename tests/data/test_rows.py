"""Rows and batches: the places of images, deltas and targets, cutting, padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from streams import DELTA_TOKENS, IMAGE_TOKENS, SIZE, make_processor, members, png, tokenizer

from onediff.data.images import decode
from onediff.data.prompts import DELTA, IMAGE
from onediff.data.rows import collate
from onediff.data.sample import BadSample, Sample, parse_sample
from onediff.data.sheet import spans


def sample(kind: str, number: int = 0) -> Sample:
    return parse_sample(members(kind, number, "s"))


def said(row) -> str:
    return tokenizer().decode(row.token_ids[row.is_target]).strip()


def talk(*turns: tuple[str, str]) -> Sample:
    conversation = tuple({"from": who, "value": what} for who, what in turns)
    return Sample("t", "s", "chat", "train", conversations=conversation, images={"image": png(3)})


def test_a_row_holds_images_in_order_before_after():
    processor, pair = make_processor(), sample("pair")
    row = processor.row(pair, None, choice=0)
    assert row.images.dtype == torch.uint8
    assert row.images.shape == (2, 3, SIZE, SIZE)
    assert np.array_equal(row.images[0], decode(pair.images["before"], processor.image))
    assert np.array_equal(row.images[1], decode(pair.images["after"], processor.image))
    assert (row.token_ids == IMAGE).sum() == 2 * IMAGE_TOKENS
    assert (row.token_ids == DELTA).sum() == DELTA_TOKENS
    assert said(row) == pair.captions[0] + tokenizer().eos_token


def test_the_instruction_of_the_sample_wins_over_the_task():
    processor = make_processor()
    plain = sample("text")
    own = Sample("i", "s", "t", "train", captions=("one",), instruction="is it red")
    decoded = [
        tokenizer().decode(processor.row(one, task, 0).token_ids) for one, task in ((plain, "pair"), (own, "pair"))
    ]
    assert "what has changed" in decoded[0]
    assert "is it red" in decoded[1]
    assert "changed" not in decoded[1]


def test_conversations_are_turns():
    processor = make_processor()
    row = processor.row(talk(("human", "<image>\nwhat"), ("gpt", "red"), ("human", "and"), ("gpt", "blue")), None, 0)
    end = tokenizer().eos_token
    assert said(row) == f"red{end} blue{end}"
    assert "<image>" not in tokenizer().decode(row.token_ids.clamp(min=0))


def test_images_of_a_conversation_go_where_it_marks_them():
    """Also between words. A row is not cut before an image, whose features would have no place."""
    pair = parse_sample(members("pair", 0, "s"))
    turns = [("human", "from <image> to"), ("gpt", "red"), ("human", "what <image> and"), ("gpt", "blue")]
    sample = replace(pair, captions=(), conversations=talk(*turns).conversations)
    row = make_processor().row(sample, None, 0)
    kinds = [span.kind for span in spans(row, tokenizer())]
    assert kinds == ["prompt", "before", "prompt", "answer", "prompt", "after", "delta", "prompt", "answer"]
    places = (row.token_ids < 0).nonzero().flatten()
    with pytest.raises(BadSample, match="an image lies beyond max_tokens") as refused:
        make_processor(max_tokens=int(places[-1])).row(sample, None, 0)
    assert refused.value.kind == "too_long"


def test_conversations_with_other_orders_of_turns():
    """A remark before the question, an opening answer, an empty answer: only answers are learned."""
    end = tokenizer().eos_token
    processor = make_processor()
    assert said(processor.row(talk(("system", "be"), ("human", "what"), ("gpt", "red")), None, 0)) == f"red{end}"
    assert said(processor.row(talk(("gpt", "red"), ("human", "and"), ("gpt", "two")), None, 0)) == f"red{end} two{end}"
    assert (
        said(processor.row(talk(("human", "what"), ("gpt", " "), ("human", "and"), ("gpt", "two")), None, 0))
        == f"two{end}"
    )


def test_couples_have_both_captions_in_order():
    processor = make_processor()
    first, second = sample("single", 1), sample("single", 2)
    row = processor.couple(first, second, choice=0)
    assert said(row) == f"first {first.captions[0]} second {second.captions[0]}{tokenizer().eos_token}"
    assert row.ids == ("s/1", "s/2")
    assert row.is_pair
    with pytest.raises(BadSample, match="one image each"):
        processor.couple(first, sample("pair"), choice=0)


def test_longer_rows_are_cut_at_the_answer_or_skipped():
    pair = sample("pair", 3)
    whole = make_processor().row(pair, None, 0)
    length = len(whole.token_ids)
    assert not make_processor(max_tokens=length).row(pair, None, 0).was_cut
    cut = make_processor(max_tokens=length - 2).row(pair, None, 0)
    assert cut.was_cut
    assert cut.token_ids.equal(whole.token_ids[:-2])
    with pytest.raises(BadSample, match=f"{length} tokens, max_tokens is {length - 2}") as refused:
        make_processor(max_tokens=length - 2, too_long="skip").row(pair, None, 0)
    assert refused.value.kind == "too_long"
    prompt = length - int(whole.is_target.sum())
    assert make_processor(max_tokens=prompt + 1).row(pair, None, 0).is_target.sum() == 1
    with pytest.raises(BadSample, match="max_tokens"):  # no target would be left
        make_processor(max_tokens=prompt).row(pair, None, 0)


def test_a_batch_of_all_kinds():
    processor = make_processor()
    rows = [
        processor.row(sample(kind, n), None, 0, source=n) for n, kind in enumerate(("single", "pair", "text", "pair"))
    ]
    batch = collate(rows)
    length = max(len(row.token_ids) for row in rows)
    assert batch.token_ids.shape == batch.position_ids.shape == (4, length)
    assert batch.token_ids.min() == 0
    # Before and after of the pairs come first.
    assert batch.pairs == 2
    in_order = [1, 3, 0, 2]
    assert batch.images.equal(torch.cat([rows[number].images for number in in_order]))
    assert (batch.image_places // length)[::IMAGE_TOKENS].tolist() == [1, 1, 3, 3, 0]
    assert len(batch.image_places) == 5 * IMAGE_TOKENS
    assert len(batch.delta_places) == 2 * DELTA_TOKENS
    flat = torch.full((4, length), 0)
    for number, row in enumerate(rows):
        flat[number, : len(row.token_ids)] = row.token_ids
    assert (flat.flatten()[batch.image_places] == IMAGE).all()
    assert (flat.flatten()[batch.delta_places] == DELTA).all()
    # The place in front of each target, row by row.
    assert batch.target_ids.equal(torch.cat([row.token_ids[row.is_target] for row in rows]))
    assert flat.flatten()[batch.target_places + 1].equal(batch.target_ids)
    assert batch.target_sources.tolist() == [n for n, row in enumerate(rows) for _ in range(int(row.is_target.sum()))]
    assert batch.info["tokens"] == sum(len(row.token_ids) for row in rows)
    assert batch.segment_ids is None and batch.segments is None


def test_a_batch_of_texts_has_no_images():
    batch = collate([make_processor().row(sample("text", n), None, 0) for n in range(2)])
    assert batch.images.shape == (0, 3, SIZE, SIZE)
    assert batch.pairs == 0
    assert not len(batch.image_places) and not len(batch.delta_places)


def test_prompts_are_padded_on_the_left():
    processor = make_processor()
    blank = Image.new("RGB", (SIZE, SIZE))
    rows = [processor.prompt([blank, blank], "one two"), processor.prompt([], "what")]
    batch = collate(rows, pad_left=True)
    pad = len(rows[0].token_ids) - len(rows[1].token_ids)
    assert pad > 0
    assert batch.token_ids[1, pad:].equal(rows[1].token_ids)
    assert batch.segment_ids[1].tolist() == [0] * pad + [1] * len(rows[1].token_ids)
    assert batch.position_ids[1, pad:].tolist() == list(range(len(rows[1].token_ids)))
    assert not batch.targets
