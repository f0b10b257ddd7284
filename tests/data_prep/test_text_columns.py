"""data_prep.text_columns: what is asked of a whole column is what each cell would have answered."""

import random
import re

import numpy as np
import pyarrow as pa

from data_prep import text_columns
from data_prep.facts import path_ids
from data_prep.image_source import PLAIN
from data_prep.text_columns import are_plain_paths, codes, first_bytes, have_different_ids

ASCII_PLAIN = re.compile(PLAIN.pattern, re.ASCII)


def columns(seed: int, count: int):
    """Random columns of short cells that are often equal, some with nulls, some a slice of another."""
    draw = random.Random(seed)
    for number in range(count):
        cells = ["".join(draw.choices("ab/.-_é \0", k=draw.choice((0, 1, 2, 8, 9, 17)))) for _ in range(number % 12)]
        if number % 3 == 0:
            cells = list(filter(ASCII_PLAIN.fullmatch, cells))
        if number % 2:
            cells = [cell if draw.random() < 0.9 else None for cell in cells]
        skipped = number % 2
        yield cells[skipped:], pa.array(cells, pa.string()).slice(skipped)


def check_codes(cells, found) -> None:
    assert [code == -1 for code in found] == [cell is None for cell in cells]
    pairs = {(cell, code) for cell, code in zip(cells, found, strict=True) if cell is not None}
    assert len(pairs) == len({cell for cell, _ in pairs}) == len({code for _, code in pairs})
    assert {code for _, code in pairs} == set(range(len(pairs)))


def test_equal_cells_and_no_others_have_the_same_number_even_where_all_hashes_collide(monkeypatch) -> None:
    for cells, column in columns(0, 600):
        check_codes(cells, codes(column).tolist())
    monkeypatch.setattr(text_columns, "_hashes", lambda texts: np.zeros(len(texts), dtype=np.uint64))
    for cells, column in columns(1, 200):
        check_codes(cells, codes(column).tolist())


def test_paths_of_a_column_are_plain_and_begin_as_those_of_its_cells() -> None:
    plain = 0
    for cells, column in columns(2, 1200):
        expected = bool(cells) and all(cell is not None and ASCII_PLAIN.fullmatch(cell) for cell in cells)
        assert are_plain_paths(column, 1) == expected, cells
        plain += expected
        if None not in cells:
            assert first_bytes(column).tolist() == [cell.encode()[0] if cell else 0 for cell in cells]
    assert plain > 50


def test_ids_that_are_said_to_differ_do_and_those_of_an_ordinary_table_are_said_to() -> None:
    draw, told = random.Random(3), 0
    for _ in range(4000):
        suffixes = draw.choices((".a", ".b", ".a-b", ""), (8, 1, 1, 1), k=2)
        names = [["/".join(draw.choices(("a", "b", "a-b", "b-a"), k=2)) + end for end in suffixes] for _ in range(3)]
        pairs = names[: draw.choice((2, 3))]
        before, after = (pa.array([pair[n] for pair in pairs]) for n in (0, 1))
        ids = path_ids({"before": before, "after": after}).to_pylist()
        if have_different_ids(pa.chunked_array([before[:1], before[1:]][: len(before)]), pa.chunked_array([after])):
            assert len(set(ids)) == len(ids), pairs
            told += len(ids) > 1
    assert told > 100
    named = [pa.chunked_array([[f"{n // 5}/{n}-{half}.jpg" for n in range(20)]]) for half in "ab"]
    assert have_different_ids(*named)
    assert not have_different_ids(*(pa.chunked_array([column.to_pylist() * 2]) for column in named))
