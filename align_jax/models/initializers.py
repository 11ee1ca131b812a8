"""How the weights of a fresh model start."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from align_jax.models.config import ModelConfig

# (config, key, shape) -> float32 array
Initializer = Callable[[ModelConfig, jax.Array, tuple[int, ...]], jax.Array]


def ones(config: ModelConfig, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A norm that scales by one."""
    return jnp.full(shape, 1.0 - config.norm_offset)


def zeros(config: ModelConfig, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A bias of nothing."""
    return jnp.zeros(shape)


def normal(config: ModelConfig, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal with deviation 0.02."""
    return 0.02 * jax.random.normal(key, shape)


def normal_to_residual(config: ModelConfig, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal with deviation 0.02 / sqrt(2 L): 2 L such matrices are added up in the residual (GPT-2)."""
    return 0.02 / (2 * config.layers) ** 0.5 * jax.random.normal(key, shape)
