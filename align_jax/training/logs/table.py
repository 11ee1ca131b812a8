"""Sinks by name: the classes of this folder, or one elsewhere."""

from __future__ import annotations

from align_jax import registry
from align_jax.errors import UserError
from align_jax.training.logs.sink import Sink

_FOLDER = __name__.rpartition(".")[0]


def find_sink(name: str) -> type[Sink]:
    """The class of a sink, which is called with a `Context`.

    Args:
      name: of a sink of this folder, or `package.module:Class`.

    Raises:
      UserError: there is no such name, module or class.
    """
    return registry.find(name, _FOLDER, Sink, "sink", "log.sinks")


def check_sink_name(name: str) -> None:
    """UserError unless the name is of a sink of this folder or has the form `package.module:Class`, which is not imported."""
    module, colon, attribute = name.partition(":")
    if not colon:
        find_sink(name)
    elif not (attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise UserError(f"log.sinks: {name!r} is not of the form package.module:Class")
