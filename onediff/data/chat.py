"""Conversations in a tokenizer's own chat template, rendered once with placeholders for users' words and answers.

The template never sees the actual words and captions, so they cannot change its output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from onediff.config.templates import TemplatePart, spaces_to_answers
from onediff.errors import UserError

MARK = "\uf8f0{}{}\uf8f1"
"""Placeholder for a turn's words or answer while the template is rendered, in Unicode's private use area."""
FOUND = re.compile(MARK.format("(words|answer)", r"(\d+)"))
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
DATED = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
TODAY = datetime(2024, 7, 26)
"""The date passed to templates that write one (Llama 3.1's default), so that prompts do not change overnight."""


def chat_source(tokenizer: Any) -> str:
    """The Jinja source of the tokenizer's chat template. Raises UserError if it has none."""
    try:
        source: str = tokenizer.get_chat_template()
    except ValueError:
        raise UserError(
            f"data.prompt: chat: the tokenizer {tokenizer.name_or_path!r} has no chat template; choose the one that fits "
            "the language model: vicuna, llava, chatml, llama3, plain"
        ) from None
    return DATED.sub(lambda used: repr(TODAY.strftime(used[2])), source)


def rendered(tokenizer: Any, system: str | None, turns: int, controls: re.Pattern[str]) -> list[TemplatePart]:
    """A conversation of `turns` turns, all answered, as the chat template writes it.

    The model learns an answer from its first character to the end of the template's `{% generation %}` block. Without
    such a block, it learns through the first special token after the answer (matched by `controls`), or through the
    tokenizer's end-of-text token if the template writes no special token. Raises UserError if the template refuses or
    changes the conversation.
    """
    messages = [] if system is None else [{"role": "system", "content": system}]
    for turn in range(turns):
        messages.append({"role": "user", "content": MARK.format("words", turn)})
        messages.append({"role": "assistant", "content": MARK.format("answer", turn)})
    text, blocks = _written(tokenizer, messages)
    marks = list(FOUND.finditer(text))
    if [(mark[1], int(mark[2])) for mark in marks] != [(kind, n) for n in range(turns) for kind in ("words", "answer")]:
        raise UserError(
            "data.prompt: chat: the tokenizer's template does not write every turn once and in order; choose another "
            "template: vicuna, llava, chatml, llama3, plain"
        )
    made, at, learns = list[TemplatePart](), 0, 0
    for mark, behind in zip(marks, [*(mark.start() for mark in marks[1:]), len(text)], strict=True):
        made += _text(text[at : mark.start()], learns - at)
        at = learns = mark.end()
        if mark[1] == "words":
            made.append(TemplatePart("words", turn=int(mark[2])))
        else:
            made.append(TemplatePart("answer", turn=int(mark[2]), learned=True))
            learns = _end(text, mark, behind, blocks, controls)
    made += _text(text[at:], learns - at)
    if not controls.search(text, marks[-1].end()):
        made.append(TemplatePart("text", tokenizer.eos_token, learned=True))
    return list(spaces_to_answers(made))


def _written(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The rendered messages and the spans of the template's `{% generation %}` blocks. Raises UserError."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    source = chat_source(tokenizer)
    marked = bool(GENERATION.search(source))
    try:
        made: Any = render_jinja_template(
            [messages], chat_template=source, return_assistant_tokens_mask=marked, **tokenizer.special_tokens_map
        )
    except TemplateError as error:
        hint = "; leave out data.prompt.system" if messages[0]["role"] == "system" else ""
        raise UserError(
            f"data.prompt: chat: the tokenizer's template refuses the conversation: {error}{hint}"
        ) from None
    return made[0][0], made[1][0] if marked else []


def _end(
    text: str, answer: re.Match[str], until: int, blocks: Iterable[tuple[int, int]], controls: re.Pattern[str]
) -> int:
    """Where the learned text of an answer ends, at most `until`."""
    token = controls.search(text, answer.end(), until)
    ends = [stop for start, stop in blocks if start <= answer.start() and answer.end() <= stop]
    return max([answer.end() if token is None else token.end(), *ends])


def _text(text: str, learned: int) -> list[TemplatePart]:
    """The template's text; its first `learned` characters belong to an answer."""
    learned = max(0, learned)
    pieces = [TemplatePart("text", text[:learned], learned=True), TemplatePart("text", text[learned:])]
    return [piece for piece in pieces if piece.text]
