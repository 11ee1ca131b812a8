"""What the project takes from `jax._src`, which JAX may change without notice: by name, here and nowhere else."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

from align_jax.errors import UserError

TESTED = "jax>=0.10,<0.13"


class Private(NamedTuple):
    """A private thing of JAX: its module below `jax._src`, its name there, and how to do without it."""

    module: str
    name: str
    otherwise: str


_ATTENTION, _NO_CUDNN = "cudnn.fused_attention_stablehlo", "set model.attention: xla"
ENTRIES = {
    "cudnn version": Private(_ATTENTION, "check_cudnn_version", _NO_CUDNN),
    "cudnn forward": Private(_ATTENTION, "_dot_product_attention_fwd_rule", _NO_CUDNN),
    "cudnn backward": Private(_ATTENTION, "_dot_product_attention_bwd_rule", _NO_CUDNN),
    "cudnn masks": Private(_ATTENTION, "MaskType", _NO_CUDNN),
    "cudnn layouts": Private(_ATTENTION, "AttentionLayout", _NO_CUDNN),
    "started": Private("xla_bridge", "backends_are_initialized", "set XLA_FLAGS yourself"),
    "processes": Private("distributed", "global_state", "train with one process"),
    "clients": Private("distributed", "_jax", "train with one process"),
    "clusters": Private("clusters", "ClusterEnv", "train with one process"),
}


def private(entry: str) -> Any:
    """A private function, class or object of JAX.

    Args:
      entry: a key of `ENTRIES`.

    Raises:
      UserError: this version of JAX does not have it where it was.
    """
    module, name, _ = ENTRIES[entry]
    try:
        return getattr(importlib.import_module(f"jax._src.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise changed(entry, "it is not there any more") from error


def call(entry: str, values: dict[str, Any], newer: dict[str, Any] | None = None) -> Any:
    """Calls a private function by keyword.

    Args:
      entry: a key of `ENTRIES`.
      values: parameter -> argument; every one must exist.
      newer: the same, of parameters that only some versions have: passed where there are such.

    Raises:
      UserError: a parameter that does not exist, or a required one that is in neither.
    """
    names = check(entry, values, newer or {})
    return private(entry)(**{key: value for key, value in (values | (newer or {})).items() if key in names})


def check(entry: str, names: Iterable[str], newer: Iterable[str] = ()) -> set[str]:
    """The parameters by which a private function would be called, without calling it.

    Raises:
      UserError: as `call`.
    """
    parameters = inspect.signature(private(entry)).parameters
    required = {p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    given = {*names, *(key for key in newer if key in parameters)}
    if unknown := given - parameters.keys():
        raise changed(entry, f"it takes no {', '.join(sorted(unknown))} any more")
    if missing := required - given:
        raise changed(entry, f"it takes {', '.join(sorted(missing))}, which nobody gives")
    return given


def parameters_of(entry: str) -> list[str]:
    """The names of a private function's parameters, in its order."""
    return list(inspect.signature(private(entry)).parameters)


def changed(entry: str, how: str) -> UserError:
    """The error for a version of JAX in which a private thing is not what it was."""
    import jax

    module, name, otherwise = ENTRIES[entry]
    return UserError(
        f"jax {jax.__version__}: jax._src.{module}.{name}: {how}; install a version that align-jax was tested with ({TESTED}), "
        f"or {otherwise}"
    )
