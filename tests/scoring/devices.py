"""A scorer on eight devices, in the three ways in which a user may spread its groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from align_jax.models import ModelConfig, weight_shardings
from align_jax.parallel.mesh import make_mesh, put_batch


def on_eight_devices(f: Callable, config: ModelConfig, weights, batch) -> Iterator[np.ndarray]:
    """`f(weights, batch)` under pmap, shard_map and a mesh of 2 x 2 x 2, `[G, K]` each.

    Args:
      config: of the weights. batch: of eight shards.
    """
    split = jax.tree.map(lambda x: np.asarray(x).reshape(8, -1, *x.shape[1:]), batch)
    under_pmap = jax.pmap(f, in_axes=(None, 0))(weights, split)
    yield np.asarray(under_pmap).reshape(-1, under_pmap.shape[-1])

    line = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    yield jax.jit(jax.shard_map(f, mesh=line, in_specs=(P(), P("data")), out_specs=P("data")))(weights, batch)

    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        placed = jax.tree.map(jax.device_put, weights, weight_shardings(config, mesh))
        yield jax.jit(f)(placed, put_batch(batch, mesh))
