"""Prompt templates by name, and a conversation in one of them: its text, with places for words and answers.

`vicuna` and `llava` are `conv_vicuna_v1` of LLaVA-1.5 (https://github.com/haotian-liu/LLaVA, `llava/conversation.py`), the
latter with the line break that LLaVA puts behind an image. `chatml` is what Qwen's models speak
(https://github.com/openai/openai-python/blob/release-v0.28.1/chatml.md), `llama3` is Meta's format of that name
(https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


@dataclass(frozen=True)
class Template:
    """Text around the words of a conversation. Special tokens of the tokenizer are written as they are called."""

    system: str = ""
    """What is told before the first turn, between `before_system` and `after_system`; nothing leaves all three out."""
    before_system: str = ""
    after_system: str = ""
    user: str = ""
    """Before a user's words."""
    after_images: str = ""
    """Between the images that stand before a user's words and those."""
    assistant: str = ""
    """Between a user's words and the answer."""
    end: str | None = None
    """A special token that ends an answer; None is the tokenizer's end of text."""
    between: str = ""
    """Behind that token."""


TEMPLATES = {
    "vicuna": Template(system=VICUNA, user="USER: ", assistant=" ASSISTANT:"),
    "llava": Template(system=VICUNA, user="USER: ", after_images="\n", assistant=" ASSISTANT:"),
    "chatml": Template(
        before_system="<|im_start|>system\n",
        after_system="<|im_end|>\n",
        user="<|im_start|>user\n",
        assistant="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        between="\n",
    ),
    "llama3": Template(
        before_system="<|start_header_id|>system<|end_header_id|>\n\n",
        after_system="<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n",
        assistant="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
    ),
    "plain": Template(assistant="\n"),
}


@dataclass(frozen=True)
class TemplatePart:
    """A piece of a conversation: text of the template, or a place for the words or the answer of a turn."""

    kind: Literal["text", "token", "words", "answer", "break"]
    """A `token` is a special one; a `break` keeps the text before it and after it from being tokenised together."""
    text: str = ""
    """Of the template; empty for words and answers."""
    turn: int = 0
    """Whose words or answer."""
    learned: bool = False
    """Answers and what ends them."""


def written(template: Template, turns: int, eos: str, in_pieces: bool = False) -> list[TemplatePart]:
    """A conversation of that many turns, all of them answered.

    `in_pieces` puts breaks between what a template has in front of words, and a space before every answer.
    """
    made: list[TemplatePart] = []
    if template.system:
        made.append(TemplatePart("text", template.before_system + template.system + template.after_system))
    breaks = [TemplatePart("break")] if in_pieces else []
    # Behind a word or a colon an answer goes on in running text; behind a line break it begins.
    lead = "" if template.assistant.endswith("\n") and not in_pieces else " "
    for turn in range(turns):
        made += [*breaks, TemplatePart("text", template.user), *breaks, TemplatePart("words", turn=turn)]
        made += [TemplatePart("text", template.assistant), TemplatePart("text", lead, learned=True)]
        made += [
            TemplatePart("answer", turn=turn, learned=True),
            TemplatePart("text", template.end or eos, learned=True),
        ]
        made.append(TemplatePart("text", template.between))
    return made if in_pieces else list(spaces_to_answers(made))


def spaces_to_answers(parts: list[TemplatePart]) -> Iterator[TemplatePart]:
    """The same text, where spaces in front of an answer are learned as its beginning.

    Most tokenizers join a space and the word behind it, so a prompt that ends with a space would have to be continued by
    a word without one, which running text does not have.
    """
    for part, behind in zip(parts, [*parts[1:], None], strict=True):
        if part.kind == "text" and not part.learned and behind is not None and behind.learned:
            kept = part.text.rstrip(" ")
            yield replace(part, text=kept)
            if behind.kind == "answer" and kept != part.text:
                yield TemplatePart("text", part.text[len(kept) :], learned=True)
        else:
            yield part


def to_be_answered(parts: list[TemplatePart]) -> list[TemplatePart]:
    """The conversation up to where its last answer begins: what a model is asked is the start of what it was taught."""
    last = max(place for place, part in enumerate(parts) if part.kind == "answer")
    while parts[last - 1].learned:
        last -= 1
    return parts[:last]
