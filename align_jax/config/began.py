"""A run's own config, as it was meant when the run began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_jax.config.source import ConfigValues

# What keys of an objective mean that came later, and that a run's own config, which names all keys, lacks or has as null.
_WITHOUT: dict[str, dict[str, Any]] = {"wpo": {"alignment": "none"}}


def of_run(path: Path) -> ConfigValues:
    """The values of a run's own config, with what the keys that came after it mean for it; errors as `ConfigValues.read`."""
    found = ConfigValues.read(path)
    found.values = completed(found.values)
    return found


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """A run's own config, as nested dicts, with what the keys that came after it mean for it."""
    objective = values.get("objective")
    if isinstance(objective, list):
        return {**values, "objective": [_with_keys(term) for term in objective]}
    return {**values, "objective": _with_keys(objective)} if isinstance(objective, dict) else values


def _with_keys(term: Any) -> Any:
    if not isinstance(term, dict):
        return term
    missing = {key: value for key, value in _WITHOUT.get(str(term.get("name")), {}).items() if term.get(key) is None}
    return {**term, **missing}
