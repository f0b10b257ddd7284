"""Conditions on samples, such as `change_type == 'add' and width >= 256`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from onediff.errors import UserError

COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: _stands_in(a, b),
    ast.NotIn: lambda a, b: not _stands_in(a, b),
}
COMPUTE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Where:
    """A condition on the columns of a sample: comparisons, `in`, `+ - * /`, `and`, `or`, `not`, parentheses.

    A comparison with a column that the sample lacks is false. Text that looks like a number is compared with numbers as
    one, since all cells of a CSV are text; other text is neither more nor less than a number. Never runs code.
    """

    def __init__(self, text: str) -> None:
        """Parses `text`. Raises UserError for anything else."""
        self.text = text
        try:
            self.tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"--where {text!r}: {getattr(error, 'msg', error)}") from None
        self.names = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        for node in ast.walk(self.tree):
            if not isinstance(node, ALLOWED):
                raise UserError(
                    f"--where {text!r}: {ast.unparse(node) if hasattr(node, 'lineno') else type(node).__name__} is not "
                    "supported; compare columns, as in \"change_type == 'add' and width >= 256\""
                )

    def __call__(self, columns: Mapping[str, Any]) -> bool:
        """Whether the condition holds for a sample."""
        return bool(_value(self.tree, columns))

    def check_names(self, known: set[str]) -> None:
        """Raises UserError for a column that no sample has."""
        for name in sorted(self.names - known):
            close = get_close_matches(name, known, n=1)
            meant = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"
            raise UserError(f"--where {self.text!r}: no sample has a column {name!r}; {meant}")


def _value(node: ast.AST, columns: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return columns.get(node.id)
        case ast.Tuple() | ast.List():
            return [_value(item, columns) for item in node.elts]
        case ast.BoolOp():
            parts = (_value(item, columns) for item in node.values)
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        case ast.UnaryOp():
            value = _value(node.operand, columns)
            return not value if isinstance(node.op, ast.Not) else _tried(operator.sub, *_alike(0, value), None)
        case ast.BinOp():
            sides = _alike(_value(node.left, columns), _value(node.right, columns))
            return _tried(COMPUTE[type(node.op)], *sides, None)
        case ast.Compare():
            values = [_value(item, columns) for item in (node.left, *node.comparators)]
            pairs = zip(node.ops, values, values[1:], strict=False)
            return all(_tried(COMPARE[type(op)], *_alike(a, b), False) for op, a, b in pairs)
    raise AssertionError(node)


def _stands_in(value: Any, among: Any) -> bool:
    if isinstance(among, list):
        return any(operator.eq(*_alike(value, item)) for item in among)
    return value in among


def _alike(a: Any, b: Any) -> tuple[Any, Any]:
    """The two values; both as numbers if one is a number and the other its text."""
    if isinstance(a, str) and isinstance(b, int | float):
        return _number(a), b
    return (a, _number(b)) if isinstance(b, str) and isinstance(a, int | float) else (a, b)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _tried(work: Callable[[Any, Any], Any], a: Any, b: Any, otherwise: Any) -> Any:
    if a is None or b is None:
        return otherwise
    try:
        return work(a, b)
    except (TypeError, ZeroDivisionError):
        return otherwise


ALLOWED = (
    *(
        ast.Constant,
        ast.Name,
        ast.Load,
        ast.Tuple,
        ast.List,
        ast.BoolOp,
        ast.And,
        ast.Or,
        ast.UnaryOp,
        ast.Not,
        ast.USub,
    ),
    *(ast.BinOp, ast.Compare, *COMPARE, *COMPUTE),
)
