"""No two classes of the product share a name: a word that is read in one file means the same in the next."""

import ast
from collections import defaultdict

from sizes import HOUSE, sources

SHARED = {
    *("Alerts", "Answer", "Attention", "Captioner", "Change", "Copies", "Counts", "Decoder", "DeltaLayer"),
    *("DeltaModule", "Found", "Job", "Known", "Outcome", "Pair", "Pairs", "Parser", "Part", "Place", "Plan"),
    *("Projector", "Ranks", "Row", "Share", "Shown", "Situation", "Source", "Stream"),
}
"""Names that are still shared. Take one off when it is renamed; nothing may be added."""


def test_no_two_classes_share_a_name():
    homes: dict[str, list[str]] = defaultdict(list)
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(f"{file.relative_to(HOUSE)}:{node.lineno}")
    shared = {name: places for name, places in homes.items() if len(places) > 1}
    assert not (new := {name: shared[name] for name in shared.keys() - SHARED}), f"give one of each another name: {new}"
    assert not SHARED - shared.keys(), "these are shared no longer: take them off the list"
