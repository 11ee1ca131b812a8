"""Reading one field of a `config.json`: its type, and what stands for it where the file is silent."""

from __future__ import annotations

from typing import Any

from align_jax.errors import UserError

REQUIRED = object()
_INT32, _LARGEST = 2**31, 3.4e38


def integer(hf: dict, key: str, where: str, default: Any = REQUIRED) -> int:
    """A positive whole number."""
    found = value(hf, key, where, default)
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found < _INT32:
        raise UserError(f"{where}: {key} is {_short(found)}; expected a positive whole number that 32 bits hold")
    return found


def number(hf: dict, key: str, where: str, default: Any = REQUIRED) -> float | None:
    """A positive number; None only where that is the default."""
    found = value(hf, key, where, default)
    if found is None and default is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= _LARGEST:
        raise UserError(f"{where}: {key} is {_short(found)}; expected a positive number that float32 holds")
    return float(found)


def numbers(hf: dict, key: str, where: str, count: int) -> tuple[float, ...]:
    """A list of so many positive numbers."""
    found = value(hf, key, where, REQUIRED)
    if not isinstance(found, list | tuple) or len(found) != count:
        raise UserError(f"{where}: {key} is {_short(found)}; expected a list of {count} numbers")
    return tuple(number({key: each}, key, where) for each in found)


def boolean(hf: dict, key: str, where: str, default: bool = False) -> bool:
    """True or false."""
    found = value(hf, key, where, default)
    if not isinstance(found, bool):
        raise UserError(f"{where}: {key} is {_short(found)}; expected true or false")
    return found


def value(hf: dict, key: str, where: str, default: Any) -> Any:
    """A field; null counts as absent, as it does in transformers."""
    found = hf.get(key)
    if found is None:
        if default is REQUIRED:
            raise UserError(f"{where}: field {key!r} is missing")
        return default
    return found


def _short(found: Any) -> str:
    text = repr(found)
    return text if len(text) < 80 else f"{text[:77]}..."
