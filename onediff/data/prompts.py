"""From a sample to a token sequence with places for images and deltas, and labels on the answers only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from onediff.data.config import PromptConfig

PICTURE, DELTA = -1, -2
"""Stand-ins for one image token and one delta token in a sequence."""


@dataclass
class Sequence:
    """Token ids of one sample; `PICTURE` and `DELTA` where features go."""

    token_ids: list[int] = field(default_factory=list)
    is_target: list[bool] = field(default_factory=list)

    def add(self, token_ids: list[int], is_target: bool = False) -> None:
        """Appends tokens that are to be learned, or only read."""
        self.token_ids += token_ids
        self.is_target += [is_target] * len(token_ids)


@dataclass(frozen=True)
class Turn:
    """A user's words and the answer to them; no answer in a prompt to be completed."""

    words: str
    answer: str | None


class Prompter:
    """Writes sequences for one tokenizer, template and number of delta tokens."""

    def __init__(self, tokenizer: Any, config: PromptConfig, delta_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.delta_tokens = delta_tokens
        self.end = [tokenizer.eos_token_id]
        # The words around the answers are the same in most rows.
        self._ids = lru_cache(maxsize=4096)(self._tokenised)
        self.start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []

    def sequence(self, pictures: Iterable[int], is_pair: bool, turns: list[Turn]) -> Sequence:
        """The sequence of one sample; `pictures` are the numbers of image tokens of each of its images.

        Images come first in the first user turn, before then after, and the delta tokens of a pair behind them; each
        answer ends with the end-of-text token and is the only thing that is learned.
        """
        made = Sequence()
        made.add(self.start + self._ids(self.config.system))
        for number, turn in enumerate(turns):
            made.add(self._ids(self.config.user))
            if number == 0:
                made.add([PICTURE] * sum(pictures))
                made.add([DELTA] * self.delta_tokens * is_pair)
            asked = turn.words + self.config.assistant
            made.add(self._ids(asked))
            if turn.answer is not None:
                made.add(self._continued(asked, " " + turn.answer.strip()) + self.end, is_target=True)
        return made

    def instruction(self, task: str) -> str:
        """The instruction of a task, or of what the task's samples hold when it has none of its own."""
        return self.config.instructions[task]

    def _continued(self, asked: str, answer: str) -> list[int]:
        """The tokens of `answer` behind `asked`: those of running text, where the tokenizer lets a word begin there.

        Alone, an answer would get a second space from tokenizers that put one before every text (Llama's).
        """
        before, whole = self._ids(asked), self._ids(asked + answer)
        return whole[len(before) :] if whole[: len(before)] == before else self._ids(answer)

    def _tokenised(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
