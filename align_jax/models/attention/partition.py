"""Running a kernel that the partitioner cannot split on each device's part of a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from align_jax.errors import UserError
from align_jax.parallel import sequence
from align_jax.parallel.axes import partition_spec


def over_mesh(
    run: Callable,
    q: jax.Array,
    keys: tuple[jax.Array, ...],
    ids: tuple[jax.Array, ...],
    pieces: tuple[jax.Array, ...] = (),
    of_heads: tuple[jax.Array, ...] = (),
) -> jax.Array:
    """`run(q, *keys, *ids, *pieces, *of_heads)` under shard_map on the mesh in context.

    Shards are cut over data and fsdp, heads over tensor.

    With `pieces`, positions are cut over `sequence`, too, and `run` finds its own part of them in q and in keys, which it
    brings together by `sequence.gathered`.

    Args:
      run: a function of arrays whose leading axis and heads are independent; returns an array like q.
      q: `[D, X, T, H, E]`. keys: keys and values `[D, *, *, Hk, E]`. ids: int32 `[D, ...]`.
      pieces: int32 `[D S, ...]`, what belongs to the S parts of the positions of every shard. of_heads: `[H]`.

    Raises:
      UserError: positions that are cut, for kernels that take no parts of rows.
    """
    parts = sequence.pieces()
    if parts > 1 and not pieces:
        raise UserError(f"model.attention: these kernels take whole rows, and mesh.sequence: {parts} cuts them; set it to auto")
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {}
    if not mesh.empty:
        axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        sizes = {name: size for name, size, kind in axes if kind == AxisType.Auto}
    if math.prod(sizes.values()) == 1:
        return run(q, *keys, *ids, *pieces, *of_heads)
    array = partition_spec(("shards", None, "positions", "heads", None), q.shape, sizes)
    tensor = sizes.get("tensor", 1) if array[3] else 1
    # Every device needs the key heads of its query heads: repeat them where there are fewer than devices.
    copies = math.lcm(keys[0].shape[3], tensor) // keys[0].shape[3]
    keys = tuple(jnp.repeat(x, copies, axis=3) if copies > 1 else x for x in keys)
    pieces = tuple(x.reshape(q.shape[0], parts, *x.shape[1:]) for x in pieces)

    def of_ids(x: jax.Array, *axes: str) -> PartitionSpec:
        return partition_spec((*axes, *(None,) * (x.ndim - len(axes))), x.shape, sizes)

    specs = (
        array,
        *(array for _ in keys),
        *(of_ids(x, "shards") for x in ids),
        *(of_ids(x, "shards", "positions") for x in pieces),
        *(PartitionSpec(array[3]) for _ in of_heads),
    )
    arrays = (q, *keys, *ids)

    def run_part(*args: jax.Array) -> jax.Array:
        whole, own, rest = args[: len(arrays)], args[len(arrays) : len(args) - len(of_heads)], args[len(args) - len(of_heads) :]
        return run(*whole, *(x.reshape(-1, *x.shape[2:]) for x in own), *rest)

    # The kernels' outputs carry no record of how they vary over the mesh.
    mapped = jax.shard_map(run_part, in_specs=specs, out_specs=array, axis_names=set(sizes), check_vma=False)
    return mapped(*arrays, *pieces, *of_heads)
