"""A run's own config, as it was meant when the run began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_jax.config.source import ConfigValues

# Keys that came later and whose default is *not* what was there before: a run's own config, which names all keys, lacks them.
_WITHOUT: dict[str, dict[str, Any]] = {"wpo": {"alignment": "none"}}


def of_run(path: Path) -> ConfigValues:
    """The values of a run's own config, with what the keys that came after it mean for it; errors as `ConfigValues.read`."""
    found = ConfigValues.read(path)
    objective = found.values.get("objective")
    for term in objective if isinstance(objective, list) else [objective]:
        if isinstance(term, dict):
            for key, value in _WITHOUT.get(str(term.get("name")), {}).items():
                term.setdefault(key, value)
    return found
