"""Logical axis names, and the one table that maps them to mesh axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

RULES: dict[str, tuple[str, ...]] = {
    "shards": ("data", "fsdp", "expert"),  # D, the blocks of a batch
    "positions": ("sequence",),  # of a row
    "shard_pieces": ("data", "fsdp", "expert", "sequence"),  # D S: for every shard, the S parts of its rows' positions
    "embed": ("fsdp", "expert", "sequence"),
    "experts": ("expert",),
    "expert_embed": ("fsdp", "sequence"),  # the width of an expert's weights
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    # Activations keep their width whole: fsdp already splits their leading axis.
    "act_embed": (),
    "head_size": (),
    "layers": (),
    "norm": (),
}


def partition_spec(axes: Sequence[str | None], shape: Sequence[int], sizes: dict[str, int]) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes on a mesh with these axis sizes.

    Args:
      axes: one logical name (or None) per dimension.
      shape: the array's shape; a dimension that the mesh axes do not divide stays whole (4 key/value heads on `tensor=8`).
      sizes: mesh axis name -> size; a mesh axis that is absent is left out.

    Raises:
      KeyError: an unknown logical axis. ValueError: two dimensions claim one mesh axis.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} axis names {tuple(axes)} for an array of shape {tuple(shape)}")
    entries, used = [], set()
    for name, dim in zip(axes, shape, strict=True):
        mesh_axes = tuple(a for a in (RULES[name] if name else ()) if sizes.get(a, 1) > 1)
        count = 1
        for axis in mesh_axes:
            count *= sizes[axis]
        if not mesh_axes or dim % count:
            entries.append(None)
            continue
        if used & set(mesh_axes):
            raise ValueError(f"axes {tuple(axes)}: two dimensions are mapped to mesh axis {sorted(used & set(mesh_axes))}")
        used |= set(mesh_axes)
        entries.append(mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes)
    return PartitionSpec(*entries)


def shardings(axes: dict, shapes: dict, mesh: Mesh) -> dict:
    """NamedShardings for a nested dict of shapes and the nested dict of its logical axes (which may hold more keys)."""
    sizes = dict(zip(mesh.axis_names, mesh.devices.shape, strict=True))

    def walk(a, s):
        if isinstance(s, dict):
            return {k: walk(a[k], s[k]) for k in s}
        return NamedSharding(mesh, partition_spec(a, s, sizes))

    return walk(axes, shapes)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks the partitioner to keep `x` laid out by these logical axes; does nothing without a mesh in context.

    Mesh axes that shard_map or pmap hold are left alone, so the same model code runs under every kind of parallelism.
    """
    sizes = auto_sizes()
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, sizes)) if sizes else x


def parts(axis: str, dim: int) -> int:
    """Into how many parts `constrain` splits a dimension of this size and logical axis."""
    sizes = auto_sizes()
    count = math.prod(sizes.get(name, 1) for name in RULES[axis])
    return 1 if dim % count else count


def mesh_size(axis: str) -> int:
    """The size of a mesh axis in context that the partitioner may use; 1 where there is none."""
    return auto_sizes().get(axis, 1)


def auto_sizes() -> dict[str, int]:
    """Mesh axes in context that the partitioner may use, and their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    return {n: s for n, s, t in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True) if t == AxisType.Auto}
