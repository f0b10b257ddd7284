"""The whole model: equal to the Hugging Face language model on the same embeddings, and consistent with itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import batch, rows, tiny_config, tiny_model
from PIL import Image
from streams import DELTA_TOKENS, IMAGE_TOKENS, SIZE, make_processor, tokenizer

from onediff.data.prompts import DELTA, IMAGE
from onediff.data.rows import collate
from onediff.data.segments import Segments
from onediff.model.answer import answer
from onediff.model.build import architecture_only
from onediff.model.cuda_graph import not_recordable
from onediff.model.onediff import PARTS, OneDiffModel
from onediff.model.registered import segments_mask
from onediff.parallel.block import Block


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def naive_embeddings(model, row):
    """`[1, tokens, width]`, filled one by one: projected image tokens, the pair's delta tokens, text tokens."""
    output, levels = model.vision(row.images)
    images = model.projector.picture_out(F.gelu(model.projector.picture_in(output))).flatten(0, 1)
    deltas = torch.zeros(0)
    if row.is_pair:
        deltas = model.delta(levels, 1)
        deltas = model.projector.delta_out(F.gelu(model.projector.delta_in(deltas)))[0]
    words = model.language.get_input_embeddings()
    taken = {IMAGE: iter(images), DELTA: iter(deltas)}
    laid = [next(taken[token]) if token in taken else words.weight[token] for token in row.token_ids.tolist()]
    return torch.stack(laid)[None]


def their_loss(model, row):
    """Hugging Face's own loss of the row, the mean over its targets."""
    labels = torch.where(row.is_target, row.token_ids, -100)[None]
    return model.language(inputs_embeds=naive_embeddings(model, row), labels=labels)


@torch.no_grad()
def test_one_image_without_deltas_equals_the_language_model(model):
    """The paper's model with its delta module removed: LLaVA."""
    (row,) = rows("single")
    theirs = their_loss(model, row)
    made = collate([row])
    assert not len(made.delta_places)
    embeds = model.embed(made)
    torch.testing.assert_close(embeds, naive_embeddings(model, row))
    torch.testing.assert_close(model.language(inputs_embeds=embeds).logits, theirs.logits)
    torch.testing.assert_close(model(made).mean(), theirs.loss, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_pair_equals_the_language_model_on_the_same_embeddings(model):
    (row,) = rows("pair")
    torch.testing.assert_close(model(collate([row])).mean(), their_loss(model, row).loss, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_batch_of_all_kinds_equals_its_rows_alone(model):
    """Padding and other rows have no effect, and every image goes to its own row."""
    made = rows("single", "pair", "text", "pair", "single")[1:]
    together = model(collate(made))
    alone = torch.cat([model(collate([row])) for row in made])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert together.dtype == torch.float32


@torch.no_grad()
def test_before_and_after_are_distinguished(model):
    made = batch("pair")
    swapped = replace(made, images=made.images.flip(0))
    image_free = made.target_places > made.delta_places.max()
    assert not torch.allclose(model(made)[image_free], model(swapped)[image_free])


def test_text_alone_trains_every_part_by_zero(model):
    model.zero_grad()
    losses = model(batch("text", "text"))
    losses.sum().backward()
    with torch.no_grad():
        expected = torch.cat([F.cross_entropy(*pieces(model, row), reduction="none") for row in rows("text", "text")])
    torch.testing.assert_close(losses.detach(), expected, rtol=1e-5, atol=1e-5)
    with_pair = tiny_model()
    with_pair(batch("pair")).sum().backward()
    trained = {name for name, parameter in with_pair.named_parameters() if parameter.grad is not None}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
        if parameter.grad is not None and not name.startswith("language"):
            assert not parameter.grad.any(), name
    for part in PARTS:
        assert any(name.startswith(part) for name in trained)


def pieces(model, row):
    """The language model's logits before each target, and the targets."""
    logits = model.language(input_ids=row.token_ids[None]).logits[0]
    places = row.is_target.nonzero().flatten()
    return logits[places - 1], row.token_ids[places]


@pytest.mark.parametrize("kinds", [("single",), ("text",)])
def test_rows_without_a_pair_train_the_delta_module_by_zero(kinds):
    model = tiny_model()
    model(batch(*kinds)).sum().backward()
    for module in (model.delta, model.projector.delta_in):
        gradients = [parameter.grad for parameter in module.parameters()]
        assert all(gradient is not None and not gradient.any() for gradient in gradients)
    model.zero_grad()
    model(batch("pair")).sum().backward()
    assert all(parameter.grad.any() for parameter in model.delta.parameters() if parameter.dim() == 2)


def test_a_frozen_tower_keeps_no_graph():
    model = tiny_model()
    model.vision.requires_grad_(False)
    model(batch("pair")).sum().backward()
    assert all(parameter.grad is None for parameter in model.vision.parameters())
    assert model.projector.picture_in.weight.grad.any()
    assert model.delta.tokens.grad.any()


def test_attention_stays_inside_each_sample():
    mask = segments_mask(Segments.of([2, 1, 1]), 1, 4, torch.float32)
    assert mask.shape == (1, 1, 4, 4)
    allowed = (mask[0, 0] == 0).int().tolist()
    assert allowed == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    near = segments_mask(Segments.of([3, 1]), 2, 2, torch.float32, window=1)
    assert (near[:, 0] == 0).int().tolist() == [[[1, 0], [0, 1]]] * 2


@torch.no_grad()
def test_two_samples_packed_in_a_row_equal_two_rows(model):
    first, second = rows("text", "text")
    long = collate([first, second])
    counts = [len(row.token_ids) for row in (first, second)]
    targets = torch.cat([first.is_target, second.is_target]).nonzero().flatten()
    packed = replace(
        long,
        token_ids=torch.cat([first.token_ids, second.token_ids])[None],
        position_ids=torch.cat([torch.arange(count) for count in counts])[None],
        segments=Segments.of(counts),
        target_places=targets - 1,
    )
    torch.testing.assert_close(model(packed), model(long), rtol=1e-5, atol=1e-5)
    as_one = replace(packed, segments=None)
    assert not torch.allclose(model(as_one), model(long), atol=1e-2)


def prompts(count: int) -> list:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 2, SIZE, SIZE, 3), dtype=np.uint8)
    processor = make_processor()
    return [
        processor.prompt([Image.fromarray(image) for image in pair], "what " * (number + 1))
        for number, pair in enumerate(images)
    ]


def greedy_without_cache(model, row, tokens: int) -> list[int]:
    embeds = model.embed(collate([row], pad_left=True))
    words = model.language.get_input_embeddings()
    found: list[int] = []
    for _ in range(tokens):
        found.append(int(model.language(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
        embeds = torch.cat([embeds, words.weight[found[-1]][None, None]], 1)
    return found


@torch.no_grad()
def test_generation_with_cache_and_left_padding_equals_step_by_step(model):
    asked = prompts(3)
    made = model.generate(collate(asked, pad_left=True), max_new_tokens=12, do_sample=False, eos_token_id=None)
    for row, found in zip(asked, made.tolist(), strict=True):
        assert found == greedy_without_cache(model, row, 12)
    assert len({tuple(found) for found in made.tolist()}) > 1


@pytest.mark.parametrize(
    ("more", "why"),
    [({}, "the model is not on a GPU"), ({"num_beams": 2}, "num_beams requests beam search")],
    ids=["greedy", "beams"],
)
def test_requesting_cuda_graphs_without_a_gpu_has_no_effect_and_is_logged_once(model, more, why, caplog):
    batch = collate(prompts(3), pad_left=True)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **more}
    plain = model.generate(batch, **options)
    assert not caplog.messages
    for _ in range(2):
        assert model.generate(batch, cuda_graph=True, **options).equal(plain)
    assert caplog.messages == [f"generating captions without CUDA graphs: {why}"]
    assert not model.cuda_graphs.used


def test_a_sharded_model_is_not_recorded():
    part = torch.nn.Linear(2, 4)
    part.weight.block = Block((8, 2), 0, 0, 4)
    assert not_recordable(part) == "the model is split over several ranks"
    part.weight.ds_id = 0
    assert not_recordable(part) == "ZeRO stage 3 gathers the weights of each step"


def test_recorded_steps_are_remembered(monkeypatch):
    model, batch = tiny_model(), collate(prompts(3), pad_left=True)
    monkeypatch.setattr("onediff.model.onediff.not_recordable", lambda language: None)
    monkeypatch.setattr("onediff.model.cuda_graph.recorded", lambda step: step)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(batch, **options)
    assert not model.cuda_graphs.used
    assert model.generate(batch, cuda_graph=True, **options).equal(plain)
    assert model.cuda_graphs.used


@pytest.mark.parametrize("elsewhere", [{}, {"repetition_penalty": 1.0}])
def test_answers_end_where_the_template_ends_a_turn(model, elsewhere):
    """With our own search and with Hugging Face's; the token that ends a turn need not be special."""
    words, device, more = tokenizer(), torch.device("cpu"), {"max_new_tokens": 6, **elsewhere}
    made = model.generate(
        collate(prompts(1), pad_left=True), do_sample=False, eos_token_id=None, pad_token_id=0, **more
    )
    second = int(made[0, 1])
    assert second not in (int(made[0, 0]), words.eos_token_id)
    expected = words.decode(made[0, :1], skip_special_tokens=True).strip()
    assert answer(model, words, prompts(1), device, ends=(second,), **more) == [expected]


def test_answers_end_at_the_end_of_text(model):
    texts = answer(model, tokenizer(), prompts(2), torch.device("cpu"), max_new_tokens=6)
    assert len(texts) == 2
    assert not any(tokenizer().eos_token in text for text in texts)
    torch.manual_seed(0)
    assert answer(model, tokenizer(), prompts(2), torch.device("cpu"), max_new_tokens=6) == texts


def test_the_same_seed_gives_the_same_weights():
    first, again, other = tiny_model(1).state_dict(), tiny_model(1).state_dict(), tiny_model(2).state_dict()
    assert all(first[name].equal(again[name]) for name in first)
    assert any(not first[name].equal(other[name]) for name in first)


def test_architecture_only_reads_no_weights():
    config = architecture_only(tiny_config())
    with torch.device("meta"):
        model = OneDiffModel(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in tiny_model().named_parameters()}
    assert model.vision.tokens == IMAGE_TOKENS
    assert model.delta.tokens.shape[0] == DELTA_TOKENS
