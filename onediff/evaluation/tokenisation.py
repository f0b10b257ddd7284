"""Tokens as in published caption scores: the Penn Treebank tokenizer of pycocoevalcap."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from onediff.evaluation.java import JavaProgram, JavaUnavailable

PTB = "ptb"
PLAIN = "plain"
PLAIN_TOKEN = re.compile(r"\w+(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|\w+(?:[-.,]\w+)*|[^\w\s]")


def tokenised(captions: Iterable[str]) -> tuple[dict[str, str], str, str | None]:
    """Tokens of each distinct caption, joined by blanks; how they were made (`ptb` or `plain`); the reason if not `ptb`.

    Without Java, a simple rule makes the tokens. The scores are then close to published ones, but not comparable.
    """
    distinct = list(dict.fromkeys(captions))
    try:
        return dict(zip(distinct, ptb_tokens(distinct), strict=True)), PTB, None
    except JavaUnavailable as error:
        return {caption: plain_tokens(caption) for caption in distinct}, PLAIN, str(error)


def ptb_tokens(captions: Sequence[str]) -> list[str]:
    """Stanford's PTBTokenizer in lower case without punctuation, exactly as pycocoevalcap calls it, in one Java start.

    Two changes make a caption's tokens independent of its neighbours: white space inside a caption is normalised (a line
    separator would shift all following captions by one), and the word "the" is put between captions. The tokenizer looks
    at the next line to decide whether "no." ends a sentence or abbreviates number; "the" has the case of the caption's
    own first letter, as the next caption of a file usually has. Raises JavaUnavailable.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = [line for caption in captions for line in (" ".join(caption.split()), _next(caption))]
    with JavaProgram(command, lines) as program:
        tokens = program.answers(seconds=60 + len(lines) / 1000)[: len(lines)]
    if len(tokens) < len(lines) or any(line != "the" for line in tokens[1::2]):
        raise JavaUnavailable("the tokenizer's lines do not match the captions")
    drop = frozenset(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in drop) for line in tokens[::2]]


def _next(caption: str) -> str:
    """The line that follows `caption`."""
    return "The" if caption.lstrip()[:1].isupper() else "the"


def plain_tokens(caption: str) -> str:
    """Lower-case words without punctuation, with clitics split off ("isn't" → "is n't"); needs no Java."""
    return " ".join(word for word in PLAIN_TOKEN.findall(caption.lower()) if any(map(str.isalnum, word)))
