"""Differences of configurations, in full and in one line."""

from onediff.config.difference import differences, flat, in_one_line


def test_only_differences_are_listed_up_to_a_limit():
    old = flat({"lr": 1e-3, "mix": {"pairs": 1.0, "singles": 2.0}, "task": {}, "seed": 0})
    new = flat({"lr": 3e-4, "mix": {"pairs": 1.0, "more": 0.5}, "task": {}, "seed": 0})
    found = differences(old, new)
    assert found == {"lr": (1e-3, 3e-4), "mix.singles": (2.0, None), "mix.more": (None, 0.5)}
    assert in_one_line(found) == "lr 0.001 → 0.0003, mix.singles 2.0 → -, mix.more - → 0.5"
    assert in_one_line(found, most=1) == "lr 0.001 → 0.0003 and 2 more"
    assert in_one_line({}) == ""
