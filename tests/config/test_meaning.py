"""The meaning of a field is read off its dataclass."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest

from align_jax.config.meaning import meaning, summary


@dataclasses.dataclass(frozen=True)
class Base:
    """What all have.

    Attributes:
      both: by the base.
      first, second: shared by two.
      long: begins here
        and goes on: here.

    More text, with both: of it.
    """

    both: int = 0
    first: int = 0
    second: int = 0
    long: int = 0
    commented: int = 0  # on its line
    # above it,
    # in two lines
    above: Literal["#", "a"] = "#"
    neither: int = 0
    after: int = 0  # its own

    beside: int = 0


@dataclasses.dataclass(frozen=True)
class Derived(Base):
    """One of them,
    in two lines.

    Attributes:
      both: by the derived.
    """

    own: int = 0  # only here


@pytest.mark.parametrize(
    "field, text",
    [
        ("both", "by the base."),
        ("first", "shared by two."),
        ("second", "shared by two."),
        ("long", "begins here and goes on: here."),
        ("commented", "on its line"),
        ("above", "above it, in two lines"),
        ("neither", ""),
        ("after", "its own"),
        ("beside", ""),
        ("unknown", ""),
    ],
)
def test_where_a_meaning_is_found(field, text):
    assert meaning(Base, field) == text


def test_a_derived_class_comes_first():
    assert meaning(Derived, "both") == "by the derived."
    assert meaning(Derived, "commented") == "on its line"
    assert meaning(Derived, "own") == "only here"


def test_a_class_without_source_has_docstrings_only():
    made = dataclasses.make_dataclass("Made", [("x", int, 0)])
    made.__doc__ = "A thing.\n\n    Attributes:\n      x: of it."
    made.__module__ = "nowhere"
    assert meaning(made, "x") == "of it."
    made.__doc__ = "A thing."
    assert meaning(made, "x") == ""


def test_the_summary_leaves_attributes_out():
    assert summary(Derived) == "One of them, in two lines."
    assert summary(Base) == "What all have."
