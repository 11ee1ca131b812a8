"""How counts, numbers and names are spelled."""

from __future__ import annotations

import pytest

from align_jax.data.inspect.findings import named, number, of_all


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (7.3321, "7.33"),
        (0.00012345, "0.000123"),
        (999.4, "999"),
        (12345.6, "12346"),
        (-4321.0, "-4321"),
        (1e20, "1e+20"),
    ],
)
def test_numbers_have_three_digits_that_count(value, text):
    assert number(value) == text


def test_one_and_several():
    assert (
        of_all(1, 40, "prompt", "have") == "1 of 40 prompts has" and of_all(2, 40, "prompt", "have") == "2 of 40 prompts have"
    )
    assert of_all(1, 1, "answer", "begin") == "1 of 1 answer begins" and of_all(0, 3, "row", "are") == "0 of 3 rows are"
    assert of_all(3, 4, "prompt of the evaluation") == "3 of 4 prompts of the evaluation"


def test_odd_names_are_quoted():
    assert named(["a", "b c", "x.y/z-1", "", " d", "e,f", "g\n"]) == "a, b c, x.y/z-1, '', ' d', 'e,f', 'g\\n'"
    assert named("abcd", 2) == "a, b, and 2 more" and named("ab", 2) == "a, b"
