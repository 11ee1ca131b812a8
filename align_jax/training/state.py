"""What training carries from step to step, created already sharded."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from align_jax.models import ModelConfig, weight_shapes, weight_shardings
from align_jax.parallel.mesh import replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Step (int32 scalar: updates made so far), the decoder's weights and the optimizer's state."""

    step: jax.Array
    params: dict
    opt_state: Any


def state_shapes(config: ModelConfig, optimizer: optax.GradientTransformation, param_dtype) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s: nothing is allocated."""
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, param_dtype),
        weight_shapes(config),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.init, params))


def state_shardings(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, param_dtype) -> TrainState:
    """Where every array of the state lives: moments with their weights, the rest on every device."""
    shapes = state_shapes(config, optimizer, param_dtype)
    weights = weight_shardings(config, mesh)

    def like_weight(moment, shape, sharding):
        # Adafactor's row and column statistics stand where weights stand, but are smaller.
        return sharding if moment.shape == shape.shape else replicated(mesh)

    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        like_weight,
        shapes.opt_state,
        shapes.params,
        weights,
        transform_non_params=lambda _: replicated(mesh),
    )
    return TrainState(replicated(mesh), weights, opt_state)


def create_state(
    config: ModelConfig, params: dict, optimizer: optax.GradientTransformation, mesh: Mesh, param_dtype
) -> TrainState:
    """The state before the first step, every part created where it will live.

    Args:
      params: the starting weights, already sharded as `weight_shardings(config, mesh)`; they become part of the state.
    """
    where = state_shardings(config, optimizer, mesh, param_dtype)
    opt_state = jax.jit(optimizer.init, out_shardings=where.opt_state)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), where.step)
    return TrainState(step, params, opt_state)
