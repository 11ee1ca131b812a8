"""Running a kernel that the partitioner cannot split on each device's part of a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from align_jax.parallel.axes import partition_spec

_HEADS = ("shards", None, None, "heads", None)


def over_mesh(run: Callable, q: jax.Array, keys: tuple[jax.Array, ...], ids: tuple[jax.Array, ...]) -> jax.Array:
    """`run(q, *keys, *ids)` under shard_map on the mesh in context: shards over data and fsdp, heads over tensor.

    Args:
      run: a function of arrays whose leading axis and heads are independent; returns an array like q.
      q: `[D, X, T, H, E]`. keys: keys and values `[D, *, *, Hk, E]`. ids: int32 `[D, ...]`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {}
    if not mesh.empty:
        axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        sizes = {name: size for name, size, kind in axes if kind == AxisType.Auto}
    if math.prod(sizes.values()) == 1:
        return run(q, *keys, *ids)
    array = partition_spec(_HEADS, q.shape, sizes)
    parts = sizes.get("tensor", 1) if array[3] else 1
    # Every device needs the key heads of its query heads: repeat them where there are fewer than devices.
    copies = math.lcm(keys[0].shape[3], parts) // keys[0].shape[3]
    keys = tuple(jnp.repeat(x, copies, axis=3) if copies > 1 else x for x in keys)
    whole = (None,) * 4
    specs = (array, *(array for _ in keys), *(partition_spec(("shards", *whole[: x.ndim - 1]), x.shape, sizes) for x in ids))
    # The kernels' outputs carry no record of how they vary over the mesh.
    return jax.shard_map(run, in_specs=specs, out_specs=array, axis_names=set(sizes), check_vma=False)(q, *keys, *ids)
