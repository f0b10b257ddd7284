"""What a search may choose."""

import pytest

from launcher.space import split_space
from onediff.errors import UserError


def test_ranges_choices_and_fixed_values():
    fixed, space = split_space(["name=a", "o.lr=1e-5..1e-3:log", "m.tokens=8..64", "o.clip=0.5..2", "a=x,y", "l=[1,2]"])
    assert fixed == ["name=a", "l=[1,2]"]
    assert [choice.ends() for choice in space] == [
        ["o.lr=1e-05", "o.lr=0.001"],
        ["m.tokens=8", "m.tokens=64"],
        ["o.clip=0.5", "o.clip=2.0"],
        ["a=x", "a=y"],
    ]
    assert [choice.log for choice in space] == [True, False, False, False]
    assert space[1].text(9) == "9" and space[2].text(1) == "1.0"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["a=1"], "nothing to search"),
        (["a"], "expected key.subkey="),
        (["a=2..1"], "the lower bound must be less"),
        (["a=0..1:log"], "must start above 0"),
        (["a=1..2:linear"], "`:log`, not `:linear`"),
        (["a=b..c"], "numbers"),
        (["a=1,2", "a=1..2"], "a: given twice"),
        (["a=1,1"], "listed twice"),
    ],
)
def test_a_space_that_means_nothing(words, why):
    with pytest.raises(UserError, match=why):
        split_space(words)
