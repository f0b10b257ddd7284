"""Parses captions into lists of changes: the grammar of the renderer's and the composer's sentences.

    caption   = clause {(", " | " and ") clause}
    clause    = one of PATTERNS, from the first word to the last
    object    = ("the" | "a" | "an") words
    place     = ("at" | "in" | "on") "the" one of PLACES

The words of an object are split into size, colour, material and shape if they are nothing else ("large red cube"); any
other words are its name ("bunch of bananas"). A caption is split only where every part is a clause, so a name may
contain "and". Text that no pattern matches is reported as unread and counts against the caption; it is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

Description = dict[str, str]
"""What is said about an object: `size`, `colour`, `material`, `shape` or `name`, and `place`; or what a change results in:
`light` (brighter, darker), `part` (of a crop)."""

WORDS = {
    "size": ("small", "large"),
    "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white"),
    "material": ("shiny", "matte"),
    "shape": ("cube", "sphere", "cylinder", "cone"),
}
"""The words for attributes of an object, in the order of a noun phrase."""
LONGEST = 150
"""The most words in a caption that is parsed; a longer one is unread. No true list of changes is that long."""
PLACES = ("top left", "top right", "bottom left", "bottom right", "top", "bottom", "left", "right", "middle")
SIZES = {"larger": "large", "grown": "large", "bigger": "large", "smaller": "small", "shrunk": "small"}
LIGHTS = {"brighter": "brighter", "brightened": "brighter", "darker": "darker", "darkened": "darker"}

_SLOTS = {
    # Nouns match lazily, so that a place that follows is not read as part of the name.
    "{old}": r"the (?P<old>{noun})",
    "{other}": r"the (?P<other>{noun})",
    "{new}": r"an? (?P<new>{noun})",
    "{at}": r"(?: (?:at|in|on) the (?P<at>{place}))?",
    "{from}": r"(?: from the (?P<at>{place}))?",
    "{to}": r"the (?P<to>{place})",
    "{new_at}": r"(?:at|in|on) the (?P<to>{place})",
    "{size}": r"(?P<size>larger|bigger|smaller)",
    "{grown}": r"(?P<size>grown|shrunk)",
    "{colour}": r"(?P<colour>[a-z]+)",
    "{light}": r"(?P<light>brighter|darker)",
    "{lit}": r"(?P<light>brightened|darkened)",
    "{part}": r"(?P<part>{place})",
    "{image}": r"the (?:whole |second )?(?:image|picture)",
}
# A name may be any words except those that continue a clause.
_WORD = r"(?!(?:is|are|has|have|was|were|been|now|no|instead)\b)[^\s,]+"
_NOUN = f"{_WORD}(?: {_WORD})*?"


PATTERNS: tuple[tuple[str, str], ...] = (
    ("none", "nothing has changed|there is no (?:difference|change)|the two (?:images|pictures) show the same scene"),
    ("none", "everything is as it was before"),
    ("swap", "{old} and {other} have (?:swapped|changed) places|{old} has changed places with {other}"),
    ("swap", "{old} is now where {other} was and vice versa|{old} and {other} were exchanged"),
    ("brighten", "{image} (?:has become|is now) {light}|{image} has been {lit}"),
    ("brighten", "{image} is {light} than the first|everything is {light} than before"),
    ("crop", "{image} has been cropped to its {part} part|only the {part} part of {image} is left"),
    ("crop", "{image} now shows only its former {part} part|everything but the {part} part has been cut off"),
    ("crop", "{image} shows the {part} part of the first"),
    ("flip", "{old}{at} has been (?:mirrored|flipped from left to right)|{old}{at} was flipped horizontally"),
    ("flip", "left and right of {old}{at} have been exchanged|{old}{at} is now its own mirror image"),
    ("blur", "{old}{at} has (?:become blurry|been blurred|lost its sharpness)"),
    ("blur", "{old}{at} is (?:now out of focus|not sharp any more)|everything behind the objects is blurred now"),
    ("replace", "{old}{at} has been replaced by {new}|there is {new} instead of {old}{at}"),
    ("replace", "{old}{at} has become {new}|{new} has taken the place of {old}{at}|{new} stands where {old} was{at}"),
    ("add", "{new} has (?:appeared|been added){at}|there is now {new}{at}|{new} is new{at}|somebody has put {new}{at}"),
    ("move", "{old} (?:has moved|was moved|went){from} to {to}|{old}{at} is now {new_at}"),
    ("move", "{old} is no longer{at} but {new_at}"),
    ("remove", "{old}{at} (?:has been removed|is gone|has disappeared|is missing)|{old} is no longer{at}"),
    ("resize", "{old}{at} (?:has become|is now|got) {size}|{old}{at} is {size} than before|{old}{at} has {grown}"),
    ("recolour", "{old}{at} (?:has turned|has become|is now|changed its colour to|was painted) {colour}"),
)
"""Change type and its sentences. The first that matches the whole clause wins, so specific patterns come first."""


class Item(NamedTuple):
    """One change: the affected objects before it, and the outcome.

    `objects` has two entries for a swap, none for the whole image, otherwise one; an added object is described as it is.
    `becomes` holds what is new: the other object of a replacement, a colour, a size, a place, a light, a part.
    """

    type: str
    objects: tuple[Description, ...] = ()
    becomes: Description = {}


class Reading(NamedTuple):
    """What a caption says: its changes, and the text that no pattern matches. With neither, it says "no change"."""

    items: tuple[Item, ...] = ()
    unread: str = ""

    @property
    def type(self) -> str | None:
        """The change type of the whole caption, `none` and `several` included; None if something is unread."""
        return None if self.unread else type_of(self.items)


def type_of(items: Sequence[Item]) -> str:
    """The change type of a pair with these changes: `none`, `several`, or that of its one change."""
    return "none" if not items else items[0].type if len(items) == 1 else "several"


def read(caption: str) -> Reading:
    """The changes that `caption` states."""
    text = " ".join(caption.lower().split()).rstrip(" .")
    clauses = _clauses(text) if text and text.count(" ") < LONGEST else None
    if clauses is None:
        return Reading(unread=caption.strip() or "(empty)")
    items = tuple(item for item in clauses if item.type != "none")
    if items and len(items) < len(clauses):
        return Reading(items, unread="both a change and none")
    return Reading(items)


def described(words: str) -> Description:
    """The attributes in `words` ("large red cube"), or else the name ("red apple")."""
    found: Description = {}
    for word in words.split():
        kind = next((kind for kind, known in WORDS.items() if word in known), None)
        if kind is None or kind in found:
            return {"name": words}
        found[kind] = word
    return found


def _clauses(text: str) -> list[Item] | None:
    """The clauses of `text`, split at commas and "and"; None if it cannot be split so that every part is a clause."""
    whole = _clause(text)
    if whole is not None:
        return [whole]
    for cut in re.finditer(r",? and |, ", text):
        first = _clause(text[: cut.start()])
        if first is not None and (rest := _clauses(text[cut.end() :])) is not None:
            return [first, *rest]
    return None


@lru_cache(maxsize=4096)
def _clause(text: str) -> Item | None:
    for kind, pattern in _COMPILED:
        match = pattern.fullmatch(text)
        if match:
            return _item(kind, {name: value for name, value in match.groupdict().items() if value})
    return None


def _item(kind: str, said: dict[str, str]) -> Item:
    place = {"place": said["at"]} if "at" in said else {}
    if kind == "none":
        return Item("none")
    if kind in ("brighten", "crop"):
        return Item(kind, (), {"light": LIGHTS[said["light"]]} if "light" in said else {"part": said["part"]})
    if kind == "blur" and "old" not in said:
        return Item(kind, ({"name": "background"},))
    if kind == "add":
        return Item(kind, (described(said["new"]) | place,))
    objects: tuple[Description, ...] = (described(said["old"]) | place,)
    if kind == "swap":
        objects += (described(said["other"]),)
    becomes: Description = {}
    if "new" in said:
        becomes = described(said["new"])
    if "to" in said:
        becomes = {"place": said["to"]}
    if "size" in said:
        becomes = {"size": SIZES[said["size"]]}
    if "colour" in said:
        becomes = {"colour": said["colour"]}
    return Item(kind, objects, becomes)


def _compiled() -> list[tuple[str, re.Pattern[str]]]:
    """One regular expression per sentence of PATTERNS."""
    place = "|".join(PLACES)
    found = []
    for kind, sentences in PATTERNS:
        for sentence in _alternatives(sentences):
            for slot, meaning in _SLOTS.items():
                sentence = sentence.replace(slot, meaning.replace("{noun}", _NOUN).replace("{place}", place))
            found.append((kind, re.compile(sentence)))
    return found


def _alternatives(sentences: str) -> list[str]:
    """Split at each `|` outside parentheses."""
    return re.split(r"\|(?![^()]*\))", sentences)


_COMPILED = _compiled()
