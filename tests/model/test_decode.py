"""Greedy decoding: the same tokens as Hugging Face `generate` with the same weights."""

import pytest
import torch
from live_tensors import WAITING
from recorded_step import recorded
from transformers import AutoConfig, AutoModelForCausalLM

from onediff.model import decode
from onediff.model.decode import greedy, not_greedy

ROWS, PROMPT, NEW = 6, 9, 14
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 40,
    "initializer_range": 0.3,
}


def language(family: str, **more: object):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **more)).eval()


def prompts(padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings `[rows, tokens, width]`, and a mask that is False for padding."""
    seen = torch.ones(ROWS, PROMPT, dtype=torch.bool)
    if padded:
        seen[1, :4] = seen[4, :7] = False
    return torch.randn(ROWS, PROMPT, 32, generator=torch.Generator().manual_seed(1)), seen


def by_hugging_face(model, embeds, seen, end):
    return model.generate(
        inputs_embeds=embeds,
        attention_mask=seen.long(),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=0,
    )


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", decode.FAMILIES)
def test_equals_hugging_face_whenever_rows_end(family, padded):
    model, (embeds, seen) = language(family), prompts(padded)
    assert not_greedy(model, PROMPT + NEW, {}) is None
    free = by_hugging_face(model, embeds, seen, None)
    # A token that ends some rows early and others never; the rows that go on are then computed alone.
    ends = max(range(1, 40), key=lambda token: (free == token).any(1).sum() * (free[:, 2:] == token).any(1).sum())
    assert (free == ends).any(1).sum() > 0
    others = free[free != ends]
    for end in (None, ends, [ends, int(others[len(others) // 2])]):
        expected = by_hugging_face(model, embeds, seen, end)
        assert greedy(model, embeds, seen, max_new_tokens=NEW, eos_token_id=end).equal(expected)


@torch.no_grad()
@pytest.mark.parametrize("family", decode.FAMILIES)
def test_bf16_chooses_the_most_likely_tokens_by_hugging_faces_logits(family):
    model, (embeds, seen) = language(family).bfloat16(), prompts(padded=True)
    embeds = embeds.bfloat16()
    made = greedy(model, embeds, seen, max_new_tokens=NEW)
    whole = torch.cat([embeds, model.get_input_embeddings()(made)], 1)
    mask = torch.cat([seen, torch.ones_like(made, dtype=torch.bool)], 1).long()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(inputs_embeds=whole, attention_mask=mask, position_ids=places).logits[:, PROMPT - 1 : -1].float()
    lead = logits.amax(-1) - logits.gather(-1, made[..., None])[..., 0]
    # Eight bits: two tokens that are nearly as likely may change places, others not.
    assert lead.max() < 0.03 * logits.abs().amax()
    assert (lead == 0).float().mean() > 0.8
    assert len(made.unique()) > 5


@torch.no_grad()
def test_ends_with_the_last_row_unless_other_ranks_continue():
    model, (embeds, seen) = language("llama"), prompts(False)
    first = int(greedy(model, embeds[:1], seen[:1], max_new_tokens=NEW)[0, 0])
    made = greedy(model, embeds[:1], seen[:1], max_new_tokens=NEW, eos_token_id=first)
    assert made.tolist() == [[first]]
    asked = []

    def another_goes_on(going: bool) -> bool:
        asked.append(going)
        return len(asked) < 5

    made = greedy(model, embeds[:1], seen[:1], max_new_tokens=NEW, eos_token_id=first, synced=another_goes_on)
    assert made.tolist() == [[first, 0, 0, 0, 0]]
    assert asked == [False] * 5


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_recorded_and_replayed_step_writes_the_same_tokens(family, padded):
    """A step does not depend on host state, so a GPU can replay it."""
    model, (embeds, seen) = language(family), prompts(padded)
    free = greedy(model, embeds, seen, max_new_tokens=NEW)
    ends = next(token for token in range(1, 40) if 1 < (free[:, 2 : NEW - 2] == token).any(1).sum() < ROWS)
    made = []

    def record(step):
        made.append(recorded(step))
        return made[-1]

    for end in (None, ends):
        expected = greedy(model, embeds, seen, max_new_tokens=NEW, eos_token_id=end)
        made.clear()
        assert greedy(model, embeds, seen, max_new_tokens=NEW, eos_token_id=end, record=record).equal(expected)
        assert sum(one.repeats for one in made) >= 4
        for one in made:
            assert torch.ops.aten.index_copy_.default in one.operators
            assert not {operator.overloadpacket for operator in one.operators}.intersection(WAITING)


def test_unsupported_options_and_models_use_hugging_face():
    model = language("llama")
    assert not_greedy(model, 20, {"num_beams": 3}) == "num_beams requests beam search"
    assert not_greedy(model, 20, {"do_sample": True}) == "do_sample requests sampling"
    assert (
        not_greedy(model, 20, {"repetition_penalty": 1.2}) == "only Hugging Face generate supports repetition_penalty"
    )
    assert "exceed the language model's sliding window of 16" in not_greedy(
        language("mistral", sliding_window=16), 20, {}
    )
    assert not_greedy(language("mistral", sliding_window=32), 20, {}) is None
    assert "of type phi3, not llama, " in not_greedy(language("phi3", pad_token_id=0), 20, {})
