"""Sections: the first fault as one line that names the key and the nearest known one."""

import pytest
from pydantic import ValidationError

from onediff.config.section import Section, nearest, validated
from onediff.errors import UserError


class Wheel(Section):
    """A wheel."""

    spokes: int = 32
    """How many."""
    names: dict[str, float] = {}
    """Of its parts."""


class Bicycle(Section):
    """Two wheels."""

    front: Wheel = Wheel()
    """The first."""
    others: dict[str, Wheel] = {}
    """By name."""
    spare: Wheel | None = None
    """Where there is one."""
    speed: float = 1.0
    """Metres a second."""
    gears: tuple[str, ...] = ()
    """Their names."""
    bells: list[int] = []
    """How loud each is."""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sped": 2}, "unknown key 'sped' (did you mean 'speed'?)"),
        ({"zzz": 2}, "unknown key 'zzz' (known: bells, front, gears, others, spare, speed)"),
        ({"front": {"spoke": 3}}, "unknown key 'front.spoke' (did you mean 'spokes'?)"),
        ({"others": {"rear": {"spoks": 3}}}, "unknown key 'others.rear.spoks' (did you mean 'spokes'?)"),
        ({"spare": {"spoks": 3}}, "unknown key 'spare.spoks' (did you mean 'spokes'?)"),
        ({"speed": "fast"}, "speed: input should be a valid number, unable to parse string as a number, got 'fast'"),
        (
            {"front": {"spokes": 1.5}},
            "front.spokes: input should be a valid integer, got a number with a fractional part",
        ),
        ({"speed": float("nan")}, "speed: input should be a finite number, got nan"),
        ({"front": {"names": {"rim": "x"}}}, "front.names.rim: input should be a valid number"),
        ({"gears": "low"}, "gears: must be a list; write [low]"),
        ({"bells": 3}, "bells: must be a list; write [3]"),
        ([1], "input should be a valid dictionary"),
    ],
)
def test_the_first_fault_in_one_line(values, message):
    with pytest.raises(UserError) as refused:
        validated(Bicycle, values, "my.yaml")
    assert str(refused.value).startswith(f"my.yaml: {message}")
    assert "\n" not in str(refused.value)


def test_values_cannot_change_after_loading():
    made = validated(Bicycle, {"front": {"spokes": 5}}, "")
    assert made.front.spokes == 5
    with pytest.raises(ValidationError):
        made.front.spokes = 6


def test_every_field_has_its_docstring():
    """`onediff` explains its configuration from them."""
    from onediff.config.run import RunConfig

    assert Wheel.model_fields["spokes"].description == "How many."
    bare = [name for name, field in RunConfig.model_fields.items() if not field.description]
    for section in RunConfig.model_fields.values():
        if isinstance(section.annotation, type) and issubclass(section.annotation, Section):
            fields = section.annotation.model_fields.items()
            bare += [f"{section.annotation.__name__}.{name}" for name, field in fields if not field.description]
    assert not bare


def test_nearest():
    assert nearest("lama", ["llama", "bert"]) == " (did you mean 'llama'?)"
    assert nearest("qqqq", ["b", "a"]) == " (known: a, b)"
