"""The tensors of a state: their names, and a checksum of each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_flatten_with_path

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
