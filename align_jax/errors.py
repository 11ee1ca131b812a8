"""Errors that the user can fix (the command line prints them as one line, without a traceback), and numbers out of range."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any


class UserError(ValueError):
    """Bad input; the message holds the offending value, where it came from and what to do."""


class MissingPackage(UserError):
    """A package that a plain install does not bring; the message says what needs it, and the command that installs it."""


def optional(package: str, extra: str, what: str) -> ModuleType:
    """A package of one of the project's extras.

    Args:
      package: as it is imported. extra: the extra that brings it, such as `plots`.
      what: needs it, begins the message.

    Raises:
      MissingPackage: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise  # it is there, and broken
        raise MissingPackage(f"{what} needs {error.name}: pip install 'align-jax[{extra}]'") from error


def check_range(
    key: str,
    value: float | None,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    hint: str = "",
) -> None:
    """UserError naming key and value unless a number is finite and `low <= value <= high`; None, not set, passes.

    Args:
      key: dotted key of the config, such as `train.steps`.
      value: what was given for it.
      low, high: the bounds.
      open_low, open_high: the bound itself is refused, too.
      hint: what else could be given, ends the message.
    """
    if value is None:
        return
    above = low < value if open_low else low <= value
    below = value < high if open_high else value <= high
    if above and below and math.isfinite(value):
        return
    bounds = [] if math.isfinite(value) else ["finite"]
    bounds += [f"{'above' if open_low else 'at least'} {low}"] if low > -math.inf else []
    bounds += [f"{'below' if open_high else 'at most'} {high}"] if high < math.inf else []
    raise UserError(f"{key}: {value!r} must be {' and '.join(bounds)}" + (f", {hint}" if hint else ""))


def check_fields(section: str, spec: Any, *names: str, **bounds: Any) -> None:
    """`check_range` of fields of a section's dataclass, whose keys are `section.name`."""
    for name in names:
        check_range(f"{section}.{name}", getattr(spec, name), **bounds)
