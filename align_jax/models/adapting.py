"""An adapter's weights: which they are, how they start, and how they are merged into the model's."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from align_jax.models.adapter import MAGNITUDE, MLP_TARGETS, SCALE, TARGETS, A, Adapter, B
from align_jax.models.config import ModelConfig
from align_jax.models.decoder import Decoder
from align_jax.models.lora import adapted_norm, stacked_scales
from align_jax.models.quantized import Quantized
from align_jax.models.weights import Path, Weight, rows


def adapter_rows(config: ModelConfig) -> list[Weight]:
    """The rows of the table that the adapter adds."""
    return [weight for weight in rows(config) if weight.stored is None]


def trained_paths(config: ModelConfig) -> set[Path] | None:
    """What training changes: the adapter and what is saved whole beside it; None: everything, without an adapter."""
    if config.lora is None:
        return None
    names = {weight.name for weight in rows(config)}
    if unknown := [name for name in config.lora.saved if name not in names]:
        raise ValueError(f"the adapter saves {unknown[0]!r} whole, which the model has not; it has {', '.join(sorted(names))}")
    return {weight.path for weight in rows(config) if weight.stored is None or weight.name in config.lora.saved}


def trained_weights(config: ModelConfig) -> str | None:
    """How many of the model's weights an adapter trains, in a line for a user; None without an adapter."""
    trained = trained_paths(config)
    if trained is None:
        return None
    sizes = {weight.path: math.prod(weight.shape(config)) for weight in rows(config)}
    own, whole = sum(sizes[path] for path in trained), sum(sizes.values())
    return f"lora: {own:,} of {whole:,} weights are trained ({own / whole:.2%})"


def fresh_adapter(config: ModelConfig, weights: dict, key: jax.Array) -> dict:
    """The weights of an adapter that changes nothing yet: B is zero, DoRA's magnitudes are the norms of the weights.

    Args:
      weights: of the model, with or without an adapter. key: of A.

    Returns:
      Nested dict of the adapter's weights alone.
    """
    flat, found, scales = flatten_dict(weights), {}, stacked_scales(config.lora, config.layers)
    for n, weight in enumerate(adapter_rows(config)):
        name, _, kind = weight.path[1].partition("_")
        if kind == MAGNITUDE:
            w, a, b = flat["layers", name], found["layers", f"{name}_{A}"], found["layers", f"{name}_{B}"]
            found[weight.path] = jax.vmap(partial(adapted_norm, axes=TARGETS[name]))(w, a, b, scales[f"{name}_{SCALE}"])
        else:
            found[weight.path] = weight.init(config, jax.random.fold_in(key, n), weight.shape(config)).astype(weight.dtype)
    return unflatten_dict(found)


def add_adapter(model: Decoder, rank: int = 16, alpha: float = 32.0, *, seed: int = 0, **options: Any) -> Decoder:
    """A model with a fresh adapter, which changes nothing yet; its weights are shared.

    Args:
      rank, alpha: see `Adapter`. seed: of the factor that is not zero.
      options: other fields of `Adapter`: `targets` (by default all, of a mixture of experts attention's), `rslora`, `dora`,
        `dropout`, `init`, `saved`.

    Returns:
      The model, whose adapter alone `TrainState.of(model.weights(), optimizer, trained_paths(model.config))` trains.

    Raises:
      ValueError: the model has an adapter already.
    """
    if model.config.lora is not None:
        raise ValueError("the model has an adapter already; merge it first (align_jax.models.adapting.merged)")
    if model.config.experts is not None:
        options = {"targets": tuple(name for name in TARGETS if name not in MLP_TARGETS), **options}
    config = dataclasses.replace(model.config, lora=Adapter(rank=rank, alpha=alpha, **options))
    weights = model.weights()
    adapter = jax.jit(partial(fresh_adapter, config))(weights, jax.random.key(seed))
    how = {"dtype": model.dtype, "remat": model.remat, "attention": model.attention}
    return Decoder(config, with_adapter(weights, adapter), **how)


def with_adapter(weights: dict, adapter: dict) -> dict:
    """A model's weights with those of an adapter: what the adapter has whole takes the place of the model's."""
    return unflatten_dict(flatten_dict(weights) | flatten_dict(adapter))


def merged(config: ModelConfig, weights: dict) -> tuple[ModelConfig, dict]:
    """The model without an adapter that computes the same: `W + s B A`, DoRA's times `m / ||W + s B A||`.

    Products and sums are float32, and each weight is rounded to its type once.

    Returns:
      The config of the model alone, and its weights; those of few bits are float32 now.
    """
    if config.lora is None:
        return config, weights
    flat, scales = flatten_dict(weights), stacked_scales(config.lora, config.layers)
    own = {weight.path for weight in adapter_rows(config)}
    result = {path: _numbers(value) for path, value in flat.items() if path not in own}
    for name in config.lora.targets:
        parts = [flat.get(("layers", f"{name}_{kind}")) for kind in (A, B, MAGNITUDE)]
        result["layers", name] = _merge(name, result["layers", name], *parts, scales[f"{name}_{SCALE}"])
    return config.plain, unflatten_dict(result)


def _numbers(weight: jax.Array | Quantized) -> jax.Array:
    return weight.astype(jnp.float32) if isinstance(weight, Quantized) else weight


@partial(jax.jit, static_argnums=0)
def _merge(name: str, weight: jax.Array, a: jax.Array, b: jax.Array, magnitude: jax.Array | None, scale: jax.Array):
    def one(layer):  # by layers, since all of them in float32 may not fit
        w, a, b, m, s = layer
        whole = w.astype(jnp.float32) + s * jnp.tensordot(a, b, axes=1, precision="highest")
        if m is not None:
            norm = jnp.sqrt(jnp.sum(jnp.square(whole), axis=range(TARGETS[name])))
            whole = jnp.where(s > 0, m / norm, 1.0) * whole
        return whole.astype(w.dtype)

    return jax.lax.map(one, (weight, a, b, magnitude, scale))


def adapter_of(config: ModelConfig, tree: dict) -> dict:
    """The adapter's part of a nested dict that has a leaf for every weight of the model."""
    flat = flatten_dict(tree)
    return unflatten_dict({weight.path: flat[weight.path] for weight in adapter_rows(config)})
