"""How large the product's code is: `python tests/project/sizes.py` prints its lines and what is longer than it should be."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

HOUSE = Path(__file__).parents[2]
PACKAGES = ("onediff", "launcher", "data_prep")
FILE, FUNCTION = 400, 60
"""The most lines that a file and a function may have."""

LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def sources() -> list[Path]:
    """The product's Python files."""
    return [file for package in PACKAGES for file in sorted((HOUSE / package).rglob("*.py"))]


def code_lines(text: str) -> int:
    """Lines with code on them: not blank, no comment, no docstring."""
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)


def too_long(name: str, text: str) -> Iterator[tuple[str, int]]:
    """`file` or `file:function`, with its lines, for what is over its limit in the text of the file `name`."""
    if len(lines := text.splitlines()) > FILE:
        yield name, len(lines)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION:
                yield f"{name}:{node.name}", length


def found() -> dict[str, int]:
    """What is over its limit in the product."""
    return dict(
        long for file in sources() for long in too_long(str(file.relative_to(HOUSE)), file.read_text(encoding="utf-8"))
    )


if __name__ == "__main__":
    print(f"{sum(code_lines(file.read_text(encoding='utf-8')) for file in sources())} lines of code")
    for place, length in found().items():
        print(f"{place}: {length} lines")
