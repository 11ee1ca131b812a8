"""The tensors of a state: their names, a checksum of each, and whether a checkpoint holds the same ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_flatten_with_path

from align_jax.errors import UserError
from align_jax.models.finite import all_finite


def flatten_names(tree: Any) -> tuple[dict[str, Any], Any]:
    """A pytree as `{dotted name: leaf}` and its treedef.

    An `nnx` variable has the name of its place, as in a plain dict.

    Raises:
      ValueError: two leaves have the same name.
    """
    leaves, treedef = tree_flatten_with_path(tree)
    named: dict[str, Any] = {}
    for path, leaf in leaves:
        if len(path) > 1 and getattr(path[-1], "name", None) == "value":
            path = path[:-1]
        name = keystr(path, simple=True, separator=".") or "value"
        if name in named:
            raise ValueError(f"two tensors of the state are named {name!r}")
        named[name] = leaf
    return named, treedef


@jax.jit
def _checksums(arrays: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """One uint32 a tensor, and whether it is finite.

    The number is the sum of its bits, each word times an odd weight of its place, modulo 2^32. Integer sums do not depend on
    their order, so that every mesh computes the same.
    """

    def checksum(array: jax.Array) -> jax.Array:
        if array.dtype == jnp.bool_:
            array = array.astype(jnp.uint8)
        size = min(array.dtype.itemsize, 4)
        bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)
        place = jnp.zeros(bits.shape, jnp.uint32)
        for axis in range(bits.ndim):
            place = place * jnp.uint32(2654435761) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return jax.tree.map(lambda array: (checksum(array), all_finite(array)), arrays)


def checksums(arrays: dict[str, Any]) -> dict[str, int]:
    """A number for the bits of each array, the same on every mesh."""
    return sums_and_bad(arrays)[0]


def sums_and_bad(arrays: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    """The checksums, and the names of the weights that hold NaN or infinite values; an optimizer's state may."""
    found = jax.device_get(_checksums(arrays))
    bad = [name for name, (_, finite) in found.items() if not finite and not name.startswith("opt_state.")]
    return {name: int(value) for name, (value, _) in found.items()}, bad


def name_on_disk(name: str, saved: Collection[str]) -> str:
    """The name under which a checkpoint has a tensor: earlier versions wrote `params.` for `trainable.`."""
    former = name.replace("trainable.", "params.", 1) if name.startswith("trainable.") else name
    return former if former in saved else name


def check_same(wanted: Mapping[str, Any], saved: Mapping[str, Any], folder: Path, subset: bool) -> None:
    """UserError naming the first tensor whose name, shape or dtype is not the checkpoint's."""
    remedy = "use the model and optimizer options that the run began with, or another run.dir"
    for name, leaf in wanted.items():
        if name not in saved:
            raise UserError(f"checkpoint {folder} has no tensor {name!r} of shape {tuple(leaf.shape)}; {remedy}")
        shape, dtype, wanted_shape = tuple(saved[name].shape), saved[name].dtype, tuple(leaf.shape)
        if shape != wanted_shape:
            raise UserError(f"checkpoint {folder}: tensor {name!r} has shape {shape}, the run has {wanted_shape}; {remedy}")
        if not subset and dtype != leaf.dtype:
            raise UserError(f"checkpoint {folder}: tensor {name!r} is {dtype}, the run has {leaf.dtype}; {remedy}")
    unknown = [] if subset else [name for name in saved if name not in wanted]
    if unknown:
        raise UserError(f"checkpoint {folder} has a tensor {unknown[0]!r} that the run does not; {remedy}")
