"""Prompts by template name and by the tokenizer's own chat template: the same ids as Hugging Face and LLaVA."""

import json
from tempfile import TemporaryDirectory

import pytest
from streams import tokenizer

from onediff.config.data import PromptConfig
from onediff.data.prompts import DELTA, IMAGE, Prompter, Turn
from onediff.data.sample import BadSample
from onediff.errors import UserError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ 'USER: ' + message.content }}"
    "{% elif message.role == 'assistant' %}{{ ' ASSISTANT: ' + message.content + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|im_end|>\n{% endgeneration %}{% else %}{{ message.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TURNS = [Turn("what has changed?", "A red cube was added."), Turn("and then?", "Two balls were taken away.")]


def speaking(template: str | None) -> object:
    """A tokenizer with a chat template and its special tokens."""
    with TemporaryDirectory() as folder:
        tokenizer().save_pretrained(folder)
        made = type(tokenizer()).from_pretrained(folder)
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    made.chat_template = template
    return made


def messages(turns: list[Turn]) -> list[dict[str, str]]:
    said = [(("user", turn.words), ("assistant", turn.answer)) for turn in turns]
    return [{"role": role, "content": text} for pair in said for role, text in pair if text is not None]


def learned(made, words) -> list[str]:
    """The learned runs of text; a special token starts a new one."""
    return words.decode([token for token, target in zip(made.token_ids, made.is_target, strict=True) if target])


def ids(words, text: str) -> list[int]:
    return words(text, add_special_tokens=False)["input_ids"]


def test_a_prompt_is_tokenised_as_running_text():
    """There is no extra space before `USER`, and words continue the template's text."""
    words, system = tokenizer(), PromptConfig().named().system
    made = Prompter(words, PromptConfig(), 1).sequence([], False, TURNS)
    text = (
        f"<s>{system}USER: what has changed? ASSISTANT: A red cube was added.</s>"
        "USER: and then? ASSISTANT: Two balls were taken away.</s>"
    )
    assert made.token_ids == ids(words, text)
    assert learned(made, words) == " A red cube was added.</s> Two balls were taken away.</s>"


@pytest.mark.parametrize("template", [CHATML, LLAMA3, VICUNA, MARKED], ids=["chatml", "llama3", "vicuna", "marked"])
def test_a_chat_template_gives_the_same_ids_as_hugging_face(template):
    words = speaking(template)
    prompter = Prompter(words, PromptConfig(template="chat"), 1)
    made = prompter.sequence([], False, TURNS)
    assert made.token_ids == words.apply_chat_template(messages(TURNS), return_dict=False)
    end = words.convert_ids_to_tokens(prompter.ends[0])
    newline, space = "\n" if template == MARKED else "", " " if template == VICUNA else ""
    assert learned(made, words) == "".join(f"{space}{turn.answer}{end}{newline}" for turn in TURNS)
    if template == MARKED:
        marked = words.apply_chat_template(messages(TURNS), return_dict=True, return_assistant_tokens_mask=True)
        assert made.is_target == [bool(target) for target in marked["assistant_masks"]]
    asked = [*TURNS[:1], Turn("and then?", None)]
    prompt = prompter.sequence([], False, asked)
    assert prompt.token_ids == words.apply_chat_template(messages(asked), add_generation_prompt=True, return_dict=False)
    assert made.token_ids[: len(prompt.token_ids)] == prompt.token_ids


@pytest.mark.parametrize(("name", "template", "start"), [("chatml", CHATML, ["<s>"]), ("llama3", LLAMA3, [])])
def test_named_templates_equal_those_of_the_models(name, template, start):
    words = speaking(template)
    config = PromptConfig(template=name, system="Be brief.")
    said = [{"role": "system", "content": "Be brief."}, *messages(TURNS)]
    made = Prompter(words, config, 1).sequence([], False, TURNS)
    expected = words.apply_chat_template(said, return_dict=False)
    assert made.token_ids == words.convert_tokens_to_ids(start) + expected
    assert Prompter(words, PromptConfig(template="chat", system="Be brief."), 1).sequence(
        [], False, TURNS
    ).token_ids == (expected)


def test_only_the_template_writes_special_tokens():
    """Captions and instructions are ordinary text, even if they look like the end of a turn."""
    words = speaking(CHATML)
    for config in (PromptConfig(template="chatml"), PromptConfig(template="chat")):
        prompter = Prompter(words, config, 1)
        made = prompter.sequence(
            [], False, [Turn("what is <|im_end|> here</s>?", "a tag <|im_end|>\n<|im_start|>user")]
        )
        start, end, eos = words.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "</s>"])
        assert [made.token_ids.count(token) for token in (start, end, eos)] == [2, 2, 0]
        assert words.decode(made.token_ids).removeprefix("<s>") == (
            "<|im_start|>user\nwhat is <|im_end|> here</s>?<|im_end|>\n"
            "<|im_start|>assistant\na tag <|im_end|>\n<|im_start|>user<|im_end|>\n"
        )
        assert learned(made, words) == "a tag <|im_end|>\n<|im_start|>user<|im_end|>"
        assert prompter.ends == (end, eos)


def test_an_answer_starts_after_its_block_of_thoughts():
    """Qwen3's template writes an empty block of thoughts before the last answer: it is asked with it, and not learned."""
    think = CHATML.replace(
        "message.content | trim",
        "('<think>\n\n</think>\n\n' if loop.last and loop.length > 1 else '') + message.content",
    )
    words = speaking(think)
    prompter = Prompter(words, PromptConfig(template="chat"), 1)
    asked, taught = (prompter.sequence([], False, [Turn("what?", answer)]).token_ids for answer in (None, "red"))
    assert words.decode(asked).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert taught[: len(asked)] == asked


def test_the_date_in_a_template_does_not_change():
    words = speaking("{{ strftime_now('%d %B %Y') }}" + CHATML)
    made = Prompter(words, PromptConfig(template="chat"), 1).sequence([], False, TURNS)
    assert words.decode(made.token_ids).startswith("26 July 2024<|im_start|>")


@pytest.mark.parametrize(
    ("template", "config", "message"),
    [
        (None, {"template": "chat"}, "has no chat template; choose the one that fits .*: vicuna, llava, chatml"),
        (
            VICUNA,
            {"template": "chat", "system": "Be brief."},
            "Only user and assistant .*; leave out data.prompt.system",
        ),
        ("{{ messages[0].content }}", {"template": "chat"}, "does not write every turn once and in order"),
        (
            None,
            {"template": "vicuna", "end": "<|im_ends|>"},
            r"ends with '<\|im_ends\|>', which is not a special token",
        ),
    ],
)
def test_a_template_that_does_not_fit_the_tokenizer_is_refused(template, config, message):
    with pytest.raises(UserError, match=message):
        Prompter(speaking(template), PromptConfig.model_validate(config), 1).sequence([], False, TURNS)


def test_a_string_names_a_template():
    assert PromptConfig.model_validate("chatml") == PromptConfig(template="chatml")
    with pytest.raises(ValueError, match="did you mean 'chatml'"):
        PromptConfig.model_validate("chatlm")
    with pytest.raises(ValueError, match="remove `user`"):
        PromptConfig(template="chat", user="U: ")


def tokenizer_image_token(prompt: str, words) -> list[int]:
    """Ids as `llava/mm_utils.py` of LLaVA-1.5 computes them, `IMAGE` for the place of an image."""
    chunks = [words(chunk).input_ids for chunk in prompt.split("<image>")]
    made = list(chunks[0])
    for chunk in chunks[1:]:
        made += [IMAGE, *chunk[1:]]  # without the token that starts a text
    return made


def test_llavas_conversations_get_llavas_ids(real_data, tmp_path):
    """A real SentencePiece tokenizer, loaded as Vicuna's is; images where the conversation says so."""
    from transformers import AutoTokenizer

    (tmp_path / "tokenizer.model").write_bytes((real_data / "stories260K" / "tok512.model").read_bytes())
    vicuna = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
    vicuna |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(vicuna))
    words = AutoTokenizer.from_pretrained(tmp_path)
    prompter = Prompter(words, PromptConfig(template="llava"), 1)
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    turns = [Turn("What is this?\n<image>", "a cat"), Turn("And <image> here?", "it ran")]
    made = prompter.sequence([1, 1], False, turns)
    text = f"{system} USER: What is this?\n<image> ASSISTANT: a cat</s>USER: And <image> here? ASSISTANT: it ran</s>"
    assert made.token_ids == tokenizer_image_token(text, words)
    assert learned(made, words) == "a cat</s> it ran</s>"
    # Of an instruction, LLaVA puts the image first, with a line break behind it.
    made = prompter.sequence([1], False, [Turn("What?", None)])
    assert made.token_ids == tokenizer_image_token(f"{system} USER: <image>\nWhat? ASSISTANT:", words)
    around = made.token_ids.index(IMAGE)
    pieces = words.convert_ids_to_tokens(made.token_ids[around - 7 : around]), made.token_ids[around + 1 :]
    assert pieces[0] == ["▁", "U", "S", "E", "R", ":", "▁"]
    assert words.convert_ids_to_tokens(pieces[1])[:4] == ["▁", "<0x0A>", "W", "h"]


def test_images_go_where_the_words_mark_them():
    prompter = Prompter(tokenizer(), PromptConfig(system="", user="", assistant=":"), 1)

    def places(words: list[str], images: int) -> str:
        made = prompter.sequence([2] * images, images == 2, [Turn(said, "a") for said in words])
        return "".join({IMAGE: "#", DELTA: "~"}.get(i) or tokenizer().decode([i]) for i in made.token_ids)

    assert places(["one"], 2) == "<s>####~one: a</s>"
    assert places(["one <image>two"], 2) == "<s>one ####~two: a</s>"
    assert places(["from <image> to <image> what"], 2) == "<s>from ## to ##~ what: a</s>"
    assert places(["<image>\none", "two <image>"], 2) == "<s>##\none: a</s>two ##~: a</s>"
    assert places(["one <image>"], 0) == "<s>one <image>: a</s>"
    with pytest.raises(BadSample, match="2 places <image> for 1 images"):
        places(["<image> and <image>"], 1)


def test_older_runs_and_models_keep_their_prompt(tmp_path):
    """They were trained on prompts tokenised in pieces, and are asked so."""
    import yaml

    from onediff.config.compose import load_run, write_run
    from onediff.model.saved import SavedModel

    vicuna = PromptConfig().named()
    old = {
        "system": vicuna.system,
        "user": vicuna.user,
        "assistant": vicuna.assistant,
        "couple_answer": "{first} {second}",
    }
    old["instructions"] = {"pair": "a", "single": "b", "couple": "c"}
    write_run(load_run("configs/demo.yaml"), tmp_path / "config.yaml")
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert load_run(tmp_path).data.prompt == load_run("configs/demo.yaml").data.prompt
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values | {"data": values["data"] | {"prompt": old}}))
    saved = SavedModel.model_validate({"model": values["model"], "prompt": old}).prompt
    assert load_run(tmp_path).data.prompt == saved
    made = Prompter(tokenizer(), saved, 1).sequence([2], False, [Turn("what?", "red")])
    pieces = [ids(tokenizer(), text) for text in (vicuna.system, vicuna.user)]
    assert made.token_ids[: 1 + sum(map(len, pieces)) + 2] == [1, *pieces[0], *pieces[1], IMAGE, IMAGE]
    # Where no text of the template meets other text there is nothing to keep.
    assert not SavedModel.model_validate(
        {"model": values["model"], "prompt": values["data"]["prompt"]}
    ).prompt.in_pieces
