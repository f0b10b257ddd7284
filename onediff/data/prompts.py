"""Turns a sample into a token sequence with places for image and delta tokens, and with labels on the answers only.

Everything between two images is tokenised as running text. Only the template can write special tokens; the same characters
in an instruction or a caption are ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

from onediff.config.data import PromptConfig
from onediff.config.templates import Template, TemplatePart, to_be_answered, written
from onediff.data.chat import chat_source, rendered
from onediff.data.lanes import mix64
from onediff.data.sample import BadSample
from onediff.errors import UserError

IMAGE, DELTA = -1, -2
"""Placeholders for one image token and one delta token in a sequence."""
IMAGE_MARK = "<image>"
"""Marks the place of an image in a user's words, as in LLaVA's conversations."""


@dataclass
class Sequence:
    """The token ids of one sample, with `IMAGE` and `DELTA` placeholders for features."""

    token_ids: list[int] = field(default_factory=list)
    is_target: list[bool] = field(default_factory=list)

    def add(self, token_ids: list[int], is_target: bool = False) -> None:
        """Appends tokens, either learned or only read."""
        self.token_ids += token_ids
        self.is_target += [is_target] * len(token_ids)


@dataclass(frozen=True)
class Turn:
    """A user's words and their answer, which is None in a prompt for generation."""

    words: str
    answer: str | None


Element = TemplatePart | list[int]
"""A text or token of a sequence, or placeholders of images and deltas."""


class Prompter:
    """Writes sequences for one tokenizer, template and number of delta tokens."""

    def __init__(self, tokenizer: Any, config: PromptConfig, delta_tokens: int) -> None:
        """Raises UserError if the template does not fit the tokenizer."""
        self.tokenizer = tokenizer
        self.config = config
        self.delta_tokens = delta_tokens
        self.template: Template | None = None if config.template == "chat" else config.named()
        source = chat_source(tokenizer) if self.template is None else repr(self.template)
        self.tokens = special_tokens(tokenizer, source)
        longest_first = sorted(self.tokens, key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # The text around the answers is the same in most rows.
        self._ids = lru_cache(maxsize=4096)(self._tokenised)
        self._parts = lru_cache(maxsize=256)(self._laid_out)
        self.ends = self._ends()
        """Tokens that end an answer: the template's, and the tokenizer's end-of-text token."""
        first = next((part for part in self._parts(1, True) if part.text or part.kind == "words"), None)
        # A chat template writes the start-of-text token itself.
        has_start = self.template is None or (first is not None and first.text == tokenizer.bos_token)
        self.start = [] if has_start or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def sequence(self, images: Iterable[int], is_pair: bool, turns: list[Turn]) -> Sequence:
        """The sequence of one sample; `images` holds the number of image tokens of each of its images.

        Images go where the user's words say `<image>`, otherwise in front of the first words, before then after. The delta
        tokens of a pair follow its last image. The targets are the answers and the tokens that end them. Raises BadSample
        if the words have places for another number of images.
        """
        made = Sequence()
        made.add(self.start)
        stretch: list[TemplatePart] = []
        before = ""
        for element in self._elements(list(images), self.delta_tokens * is_pair, turns):
            if isinstance(element, TemplatePart) and element.kind == "text":
                stretch.append(element)
                continue
            is_token = isinstance(element, TemplatePart) and element.kind == "token" and not self.config.in_pieces
            self._add(made, before, stretch, element.text if is_token else "")  # type: ignore[union-attr]
            stretch, before = [], element.text if is_token else ""  # type: ignore[union-attr]
            if isinstance(element, list):
                made.add(element)
            elif element.kind == "token":
                made.add([self.tokens[element.text]], element.learned)
        self._add(made, before, stretch, "")
        return made

    def instruction(self, task: str, choice: int | None = None) -> str:
        """The instruction of a task: the wording chosen by `choice`, or the first."""
        wordings = self.config.wordings(task)
        return wordings[0 if choice is None or len(wordings) == 1 else mix64(choice, 2) % len(wordings)]

    def answer(self, words: str) -> list[int]:
        """The tokens of an answer, including those that end it."""
        made = self.sequence([], False, [Turn("", words)])
        return [token for token, learned in zip(made.token_ids, made.is_target, strict=True) if learned]

    def parts(self, turns: int, answered: bool) -> list[TemplatePart]:
        """A conversation of `turns` turns as the template writes it, with places for words and answers."""
        return self._parts(turns, answered)

    def _elements(self, images: list[int], deltas: int, turns: list[Turn]) -> Iterator[Element]:
        words = placed([turn.words for turn in turns], images, deltas, self.template)
        for part in self._parts(len(turns), turns[-1].answer is not None):
            if part.kind == "answer":
                yield TemplatePart("text", self._as_text((turns[part.turn].answer or "").strip()), learned=True)
            elif part.kind == "words":
                for piece in words[part.turn]:
                    yield TemplatePart("text", self._as_text(piece)) if isinstance(piece, str) else piece
            else:
                yield part

    def _laid_out(self, turns: int, answered: bool) -> list[TemplatePart]:
        """The parts of a conversation, with each of the template's special tokens as its own part."""
        if self.template is None:
            parts = rendered(self.tokenizer, self.config.system, turns, self.special)
        else:
            parts = written(self.template, turns, self.tokenizer.eos_token, self.config.in_pieces)
        made: list[TemplatePart] = []
        for part in parts if answered else to_be_answered(parts):
            if part.kind != "text":
                made.append(part)
                continue
            at = 0
            for found in self.special.finditer(part.text):
                made += [replace(part, text=part.text[at : found.start()]), replace(part, kind="token", text=found[0])]
                at = found.end()
            made.append(replace(part, text=part.text[at:]))
        return [part for part in made if part.kind != "text" or part.text]

    def _ends(self) -> tuple[int, ...]:
        parts = self._parts(1, True)
        answer = next(place for place, part in enumerate(parts) if part.kind == "answer")
        token = next((part.text for part in parts[answer:] if part.kind == "token" and part.learned), None)
        if token is None:
            assert self.template is not None
            raise UserError(
                f"data.prompt: {self.config.template}: an answer ends with {self.template.end!r}, which is not a special "
                f"token of the tokenizer {self.tokenizer.name_or_path!r}; choose the language model's own template"
            )
        return tuple(dict.fromkeys((self.tokens[token], self.tokenizer.eos_token_id)))

    def _add(self, made: Sequence, before: str, stretch: Several[TemplatePart], after: str) -> None:
        """Appends the text between two special tokens, images or ends of the sequence."""
        text, done = "", list[int]()
        runs = [(learned, "".join(part.text for part in parts)) for learned, parts in groupby(stretch, _is_learned)]
        for number, (learned, run) in enumerate(runs, 1):
            text += run
            whole = self._ids(before, text, after if number == len(runs) else "")
            # A prompt for generation must be a prefix of this. If the tokenizer would merge the end of the prompt with the
            # start of the answer, the answer is tokenised separately.
            is_continued = whole[: len(done)] == done
            added = whole[len(done) :] if is_continued else self._ids("", run, "")
            made.add(added, learned)
            done = whole if is_continued else done + added

    def _as_text(self, words: str) -> str:
        """The words, with special tokens marked to be read as ordinary text."""
        if not self.special.search(words):
            return words
        from transformers.utils.chat_template_utils import mark_control_tokens

        return str(mark_control_tokens(words, self.special))

    def _tokenised(self, before: str, text: str, after: str) -> list[int]:
        """The tokens of `text` between two special tokens. Raises BadSample if marked text cannot be encoded."""
        if not text:
            return []
        inside = before + text + after
        if MARKED.search(text):
            from transformers.utils.chat_template_utils import encode_marked_chat

            try:
                ids = encode_marked_chat(self.tokenizer, inside)
            except ValueError as error:
                raise BadSample("special_token", str(error)) from None
        else:
            ids = self.tokenizer(inside, add_special_tokens=False)["input_ids"]
        return ids[bool(before) : len(ids) - bool(after)]


MARKED = re.compile("[\U000f0000\U000f0001]")
"""The marks of transformers' `mark_control_tokens`."""


def _is_learned(part: TemplatePart) -> bool:
    return part.learned


def special_tokens(tokenizer: Any, source: str) -> dict[str, int]:
    """Tokens that only a template can write, as ids by text: the tokenizer's special tokens, and tokens added to its
    vocabulary that occur in the template's `source`."""
    return {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content in source and not token.content.isspace())
    } | {tokenizer.eos_token: tokenizer.eos_token_id}


def placed(words: list[str], images: list[int], deltas: int, template: Template | None) -> list[list[str | list[int]]]:
    """The user's words of each turn, split where images and deltas go. Raises BadSample."""
    if not images:
        return [[text] for text in words]
    marks = sum(text.count(IMAGE_MARK) for text in words)
    after = template.after_images if template else ""
    if marks == 0:
        words, marks = [IMAGE_MARK + after + words[0], *words[1:]], 1
    if marks not in (1, len(images)):
        raise BadSample("bad_schema", f"{marks} places {IMAGE_MARK} for {len(images)} images")
    places = [[IMAGE] * sum(images)] if marks == 1 else [[IMAGE] * length for length in images]
    places[-1] += [DELTA] * deltas
    made: list[list[str | list[int]]] = []
    for whole in words:
        first, *others = whole.split(IMAGE_MARK)
        pieces: list[str | list[int]] = [first]
        for text in others:
            pieces += [places.pop(0), text]
        made.append(pieces)
    return made
