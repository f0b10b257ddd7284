"""No two classes of the product share a name: a word that is read in one file means the same in the next."""

import ast
from collections import defaultdict

from sizes import HOUSE, sources


def test_no_two_classes_share_a_name():
    homes: dict[str, list[str]] = defaultdict(list)
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(f"{file.relative_to(HOUSE)}:{node.lineno}")
    shared = {name: places for name, places in homes.items() if len(places) > 1}
    assert not shared, f"give one of each another name: {shared}"
