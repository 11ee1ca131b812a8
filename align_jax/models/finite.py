"""Whether weights are numbers: which tensors hold NaN or infinite values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict


def all_finite(array: jax.Array) -> jax.Array:
    """Whether all of an array is finite, a bool scalar; of integers it is."""
    return jnp.all(jnp.isfinite(array)) if jnp.issubdtype(array.dtype, jnp.floating) else jnp.bool_(True)


@jax.jit
def _finite(arrays: dict[str, Any]) -> dict[str, jax.Array]:
    return jax.tree.map(all_finite, arrays)


def not_finite(weights: dict) -> list[str]:
    """The dotted names of the tensors of a nested dict that hold NaN or infinite values; on whatever devices they are."""
    found = jax.device_get(_finite({".".join(map(str, path)): leaf for path, leaf in flatten_dict(weights).items()}))
    return sorted(name for name, parts in found.items() if not all(jax.tree.leaves(parts)))


def spelled(names: list[str]) -> str:
    """The names of such tensors, in a sentence."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{'tensor' if len(names) == 1 else 'tensors'} {', '.join(map(repr, names[:3]))}{more}"
