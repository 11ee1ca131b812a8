"""Sinks by name: the modules of this folder that have one, or a class elsewhere."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from align_jax.errors import UserError

_FOLDER, _SELF = __name__.rpartition(".")[::2]


def known_sinks() -> list[str]:
    """The names of the sinks of this folder."""
    # Only files that say so: reading them would import what they need.
    names = (module.name for module in pkgutil.iter_modules(importlib.import_module(_FOLDER).__path__))
    return sorted(name for name in names if name != _SELF and hasattr(importlib.import_module(f"{_FOLDER}.{name}"), "SINK"))


def check_sink_name(name: str) -> None:
    """UserError unless the name is of a known sink or has the form `package.module:Class`; imports nothing of the user's."""
    module, colon, attribute = name.partition(":")
    if colon and not (attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise UserError(f"log.sinks: {name!r} is not of the form package.module:Class")
    if not colon and name not in known_sinks():
        raise UserError(f"log.sinks: there is no sink {name!r}; there are {', '.join(known_sinks())}, or package.module:Class")


def find_sink(name: str) -> Callable[..., Any]:
    """The class of a sink, which is called with a `Context`.

    Raises:
      UserError: there is no such name, module or class.
    """
    check_sink_name(name)
    module, colon, attribute = name.partition(":")
    if not colon:
        return importlib.import_module(f"{_FOLDER}.{name}").SINK
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise UserError(f"log.sinks: {name!r} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    except AttributeError as error:
        raise UserError(f"log.sinks: module {module} has no {attribute!r}") from error
