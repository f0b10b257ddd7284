"""No file of the product is longer than 400 lines and no function longer than 60."""

from sizes import code_lines, found, too_long

ALLOWED: dict[str, int] = {}
"""What is longer today and must not grow. Shorten a line here when it shrinks; nothing may be added."""


def test_no_file_and_no_function_is_longer_than_its_limit():
    over = {place: length for place, length in found().items() if length > ALLOWED.get(place, 0)}
    assert not over, f"cut these into parts that have a name of their own: {over}"
    assert not ALLOWED.keys() - found().keys(), "these are within their limits by now: take them off the list"


def test_what_is_too_long_is_named_and_only_code_is_counted():
    text = '"""Two\nlines."""\n\n# A comment.\ndef short():\n    """Says so."""\n    return (\n        1\n    )\n'
    assert code_lines(text) == 4
    function = "def long():\n" + "    pass\n" * 60
    assert list(too_long("a.py", function)) == [("a.py:long", 61)]
    assert list(too_long("a.py", "\n" * 401)) == [("a.py", 401)]
