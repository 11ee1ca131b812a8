"""Rows longer than one device holds: their positions over the mesh axis `sequence` (context sharding).

A row's positions are cut into 2 S pieces, S the size of the axis, and device s holds pieces s and 2 S - 1 - s: in causal
attention early positions see few keys and late ones many, and so every device has as many pairs of queries and keys. What
works on each position alone never needs another device; attention brings the keys of all positions together in their natural
order (`gathered`), while its queries stay where they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align_jax.parallel.axes import mesh_size

AXIS = "sequence"


def pieces() -> int:
    """S, over how many devices the positions of rows are spread; 1 without a mesh, and where shard_map holds the axis."""
    return mesh_size(AXIS)


def padded(length: int) -> int:
    """The next length that 2 S divides; the same where nothing is cut."""
    whole = 2 * pieces() if pieces() > 1 else 1
    return -(-length // whole) * whole


def dealt(x: jax.Array, axis: int, parts: int | None = None) -> jax.Array:
    """Positions along an axis in the order in which devices hold them: those of device 0, of device 1, and so on.

    Args:
      parts: S, where no mesh says it.
    """
    parts = parts or pieces()
    if parts == 1:
        return x
    split = x.reshape(*x.shape[:axis], 2, parts, -1, *x.shape[axis + 1 :])
    early, late = (jnp.take(split, i, axis=axis) for i in range(2))
    return jnp.stack([early, jnp.flip(late, axis)], axis + 1).reshape(x.shape)


def natural(x: jax.Array, axis: int, parts: int | None = None) -> jax.Array:
    """The inverse of `dealt`.

    Args:
      parts: S, where no mesh says it.
    """
    parts = parts or pieces()
    if parts == 1:
        return x
    split = x.reshape(*x.shape[:axis], parts, 2, -1, *x.shape[axis + 1 :])
    early, late = (jnp.take(split, i, axis=axis + 1) for i in range(2))
    return jnp.concatenate([early, jnp.flip(late, axis)], axis).reshape(x.shape)


def gathered(x: jax.Array, axis: int, parts: int) -> jax.Array:
    """In shard_map: all positions along an axis, in their natural order, from each device's own; gradients are summed back.

    Args:
      parts: S.
    """
    return x if parts == 1 else natural(jax.lax.all_gather(x, AXIS, axis=axis, tiled=True), axis, parts)


def by_device(x: jax.Array, axis: int, to: int, parts: int | None = None) -> jax.Array:
    """Dealt positions with the devices that hold them on an axis of their own: `[.., R, ..]` -> `[.., S, .., R / S, ..]`.

    Args:
      axis: of positions. to: of devices, before it. parts: S, where no mesh says it.
    """
    parts = parts or pieces()
    return jnp.moveaxis(x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :]), axis, to)


def from_devices(x: jax.Array, axis: int, at: int) -> jax.Array:
    """The inverse of `by_device`: the devices stand on the axis `at`, and positions will on `axis`."""
    moved = jnp.moveaxis(x, at, axis)
    return moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])
