"""Prompts: where images, deltas and targets lie in a sequence."""

import pytest
from streams import DELTA_TOKENS, IMAGE_TOKENS, PATCH, PROMPT, SIZE, make_processor, members, tokenizer
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from onediff.config.data import PromptConfig
from onediff.config.model import ImageConfig
from onediff.data.prompts import DELTA, IMAGE, Prompter, Turn
from onediff.data.rows import Processor
from onediff.data.sample import parse_sample


@pytest.fixture
def prompter():
    return make_processor().prompter


def words(ids: list[int]) -> str:
    """The text of a sequence with `#` for an image token and `~` for a delta token."""
    runs = []
    for token in ids:
        runs.append({IMAGE: "#", DELTA: "~"}.get(token) or tokenizer().decode([token]))
    return "".join(runs)


def test_a_pair(prompter):
    made = prompter.sequence([IMAGE_TOKENS] * 2, True, [Turn("what has changed", " a red cube ")])
    places = "#" * (2 * IMAGE_TOKENS) + "~" * DELTA_TOKENS
    assert words(made.token_ids) == f"<s>U: {places}what has changed A: a red cube</s>"
    learned = [token for token, target in zip(made.token_ids, made.is_target, strict=True) if target]
    assert words(learned) == " a red cube</s>"


def test_a_single_image_has_no_delta_and_a_text_no_image(prompter):
    assert words(prompter.sequence([IMAGE_TOKENS], False, [Turn("one", "two")]).token_ids) == "<s>U: ####one A: two</s>"
    assert words(prompter.sequence([], False, [Turn("one", "two")]).token_ids) == "<s>U: one A: two</s>"


def test_turns_learn_every_answer_and_show_images_once(prompter):
    made = prompter.sequence([IMAGE_TOKENS], False, [Turn("one", "two"), Turn("red", "blue")])
    assert words(made.token_ids) == "<s>U: ####one A: two</s>U: red A: blue</s>"
    learned = [token for token, target in zip(made.token_ids, made.is_target, strict=True) if target]
    assert words(learned) == " two</s> blue</s>"


def test_a_prompt_to_be_answered_is_the_start_of_the_training_sequence(prompter):
    asked = prompter.sequence([IMAGE_TOKENS] * 2, True, [Turn("what", None)])
    taught = prompter.sequence([IMAGE_TOKENS] * 2, True, [Turn("what", "red")])
    assert taught.token_ids[: len(asked.token_ids)] == asked.token_ids
    assert not any(asked.is_target)
    assert all(taught.is_target[len(asked.token_ids) :])


def test_instructions_by_task(prompter):
    assert prompter.instruction("pair") == PROMPT.instructions["pair"]
    with pytest.raises(ValueError, match="needs a text for 'couple'"):
        PromptConfig(instructions={"pair": "a", "single": "b"})


def test_each_sample_draws_one_of_several_wordings():
    """Evenly, independent of the choice of captions; inference uses the first."""
    prompt = PROMPT.model_copy(update={"instructions": {**PROMPT.instructions, "birds": ["how", "why", "where"]}})
    prompter = Prompter(tokenizer(), prompt, DELTA_TOKENS)
    drawn = [(choice % 2, prompter.instruction("birds", choice)) for choice in range(1200)]
    assert drawn == [(choice % 2, prompter.instruction("birds", choice)) for choice in range(1200)]
    assert all(150 < drawn.count((caption, wording)) < 250 for caption in (0, 1) for wording in ("how", "why", "where"))
    assert prompter.instruction("birds") == "how"
    processor = Processor(prompter, ImageConfig(size=SIZE), make_processor().config, PATCH)
    for choice in range(5):
        row = processor.row(parse_sample(members("pair", 0, "s")), "birds", choice)
        assert words(row.token_ids.tolist()).count(prompter.instruction("birds", choice) + " A:") == 1
    for wrong in ([], [" "], ""):
        with pytest.raises(ValueError, match="needs a text for 'birds', not an empty one"):
            PromptConfig(instructions={**PROMPT.instructions, "birds": wrong})


def test_the_answer_of_a_sentencepiece_model_starts_as_in_running_text():
    """Llama's tokenizer puts a space before every text; a second space would be a separate token."""
    pieces = ["<unk>", "<s>", "</s>", "▁", ":", "A", "▁A", "a", "c", "▁c", "▁a", "▁ca", "b", "ca", "cab", "▁cab"]
    bpe = models.BPE(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[("▁", "A"), ("▁", "c"), ("▁", "a"), ("▁c", "a"), ("c", "a"), ("▁ca", "b"), ("ca", "b")],
        unk_token="<unk>",
    )
    made = Tokenizer(bpe)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    llama = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    prompter = Prompter(llama, PromptConfig(system="", user="", assistant=" A:"), 1)
    sequence = prompter.sequence([], False, [Turn("a", "cab")])
    assert llama.convert_ids_to_tokens(sequence.token_ids) == ["<s>", "▁a", "▁A", ":", "▁cab", "</s>"]
    assert sequence.is_target == [False] * 4 + [True] * 2


def test_processors_use_the_configured_instruction():
    processor = make_processor()
    other = Processor(processor.prompter, ImageConfig(size=8), processor.config, 4)
    row = other.prompt([], "is it red", task="single")
    assert words(row.token_ids.tolist()) == "<s>U: is it red A:"
