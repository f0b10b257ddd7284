"""Prompt templates, and conversations written in them with places for words and answers.

`vicuna` and `llava` are `conv_vicuna_v1` of LLaVA-1.5 (https://github.com/haotian-liu/LLaVA, `llava/conversation.py`);
`llava` adds the line break that LLaVA puts after an image. `chatml` is the format of Qwen's models
(https://github.com/openai/openai-python/blob/release-v0.28.1/chatml.md), and `llama3` is Meta's
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
    """The text around the words of a conversation. Special tokens are written by name."""

    system: str = ""
    """The system message, between `before_system` and `after_system`; if empty, all three are omitted."""
    before_system: str = ""
    after_system: str = ""
    user: str = ""
    """Text before a user's words."""
    after_images: str = ""
    """Text between images and the user's words after them."""
    assistant: str = ""
    """Text between a user's words and the answer."""
    end: str | None = None
    """The special token that ends an answer; None for the tokenizer's end-of-text token."""
    between: str = ""
    """Text after that token."""


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
    """A `token` is a special token. A `break` separates texts that must not be tokenised together."""
    text: str = ""
    """The template's text; empty for words and answers."""
    turn: int = 0
    """The turn of the words or the answer."""
    learned: bool = False
    """Whether the part is a target: an answer, or the token that ends it."""


def written(template: Template, turns: int, eos: str, in_pieces: bool = False) -> list[TemplatePart]:
    """A conversation of `turns` turns, all answered.

    `in_pieces` puts breaks around the template's text before a user's words, and a space before every answer.
    """
    made: list[TemplatePart] = []
    if template.system:
        made.append(TemplatePart("text", template.before_system + template.system + template.after_system))
    breaks = [TemplatePart("break")] if in_pieces else []
    # After a word or a colon, an answer continues running text and needs a space; after a line break it does not.
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
    """Moves spaces before an answer into the learned text.

    Most tokenizers merge a space with the following word. After a prompt that ends with a space, the model would have to
    start with a word without its space, which does not occur in running text.
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
    """The conversation up to its last answer, so that a prompt is a prefix of a training sequence."""
    last = max(place for place, part in enumerate(parts) if part.kind == "answer")
    while parts[last - 1].learned:
        last -= 1
    return parts[:last]
