"""Numbers out of range are named with their key, value and bounds."""

from __future__ import annotations

import dataclasses
import math

import pytest

from align_jax.errors import MissingPackage, UserError, check_fields, check_range, optional


@pytest.mark.parametrize(
    "value, bounds, message",
    [
        (0, {"low": 1}, "a.b: 0 must be at least 1"),
        (0.0, {"low": 0, "open_low": True}, "a.b: 0.0 must be above 0"),
        (1.5, {"low": 0, "high": 1}, "a.b: 1.5 must be at least 0 and at most 1"),
        (0.5, {"low": 0, "high": 0.5, "open_high": True}, "a.b: 0.5 must be at least 0 and below 0.5"),
        (math.inf, {"low": 0, "open_low": True}, "a.b: inf must be finite and above 0"),
        (math.nan, {}, "a.b: nan must be finite"),
        (1, {"low": 2, "hint": "for a contrast"}, "a.b: 1 must be at least 2, for a contrast"),
        (2**32, {"low": 0, "high": 2**32, "open_high": True}, "a.b: 4294967296 must be at least 0 and below 4294967296"),
    ],
)
def test_a_value_out_of_range_is_named(value, bounds, message):
    with pytest.raises(UserError) as caught:
        check_range("a.b", value, **bounds)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "value, bounds",
    [
        (1, {"low": 1}),
        (1e-30, {"low": 0, "open_low": True}),
        (1, {"low": 0, "high": 1}),
        (-5.0, {}),
        (None, {"low": 1}),
    ],
)
def test_what_is_in_range_passes(value, bounds):
    check_range("a.b", value, **bounds)


def test_fields_are_checked_by_name():
    @dataclasses.dataclass
    class Spec:
        good: int = 3
        unset: int | None = None
        bad: int = 0

    check_fields("section", Spec(), "good", "unset", low=1)
    with pytest.raises(UserError, match="^section.bad: 0 must be at least 1$"):
        check_fields("section", Spec(), "good", "bad", low=1)


def test_a_package_of_an_extra(monkeypatch, tmp_path):
    assert optional("math", "plots", "x") is math
    with pytest.raises(MissingPackage, match=r"^a picture needs nosuchpackage: pip install 'align-jax\[plots\]'$"):
        optional("nosuchpackage.figure", "plots", "a picture")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "brokenpackage.py").write_text("import nosuchpackage")
    with pytest.raises(ModuleNotFoundError, match="nosuchpackage") as caught:  # which no extra brings
        optional("brokenpackage", "plots", "a picture")
    assert not isinstance(caught.value, UserError)
