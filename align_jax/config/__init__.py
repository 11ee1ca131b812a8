"""The typed config: sections (one frozen dataclass each), where their values come from, and putting them together."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align_jax.config.load import Config, load_config
    from align_jax.config.source import parse_overrides

# Imported on first use: what helps at the command line (keys, words, the first check) needs no JAX.
_HOMES = {
    "Config": "align_jax.config.load",
    "load_config": "align_jax.config.load",
    "parse_overrides": "align_jax.config.source",
}

__all__ = ["Config", "load_config", "parse_overrides"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'align_jax.config' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
