"""Low-rank adapters: what one is, and what it adds to a product.

LoRA (arXiv 2106.09685), rsLoRA (arXiv 2312.03732) and DoRA (arXiv 2402.09353), as PEFT computes them. Axes as in
`align_jax.models.decoder`; also r the rank.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align_jax.models.adapter import KEY, MAGNITUDE, SCALE, TARGETS, A, Adapter, B
from align_jax.models.ops import linear


def stacked_scales(adapter: Adapter, layers: int) -> dict[str, jax.Array]:
    """Name -> s `[L]` of each projection with an adapter, to be scanned over beside the weights."""
    return {f"{name}_{SCALE}": jnp.asarray(adapter.scales(name, layers), jnp.float32) for name in adapter.targets}


def adapted(y: jax.Array, x: jax.Array, w: dict, name: str, dropout: float = 0.0) -> jax.Array:
    """What a projection with its adapter gives: `y + s B A x`, or DoRA's `m (y + s B A x) / ||W + s B A||`.

    With dropout, `x' = dropout(x)`: `y + s B A x'`, or `y + (g - 1) W x' + g s B A x'` with g = m / ||W + s B A||.

    Args:
      y: `W x`, `[..., outputs]`. x: `[..., inputs]`, in the type of y.
      w: the weights of one layer, in the type of x but for the scale. name: of the projection.

    Returns:
      In the type of y; y itself where the projection has no adapter.
    """
    if f"{name}_{A}" not in w:
        return y
    a, b, scale, axes = w[f"{name}_{A}"], w[f"{name}_{B}"], w[f"{name}_{SCALE}"], TARGETS[name]
    seen = _dropped(x, dropout, w.get(KEY), name)
    low = linear(linear(seen, a, axes) * scale.astype(x.dtype), b)
    if f"{name}_{MAGNITUDE}" not in w:
        return y + low
    # In float32: a gain of 1.003 would be 1 in bfloat16.
    gain, y32, low = _gain(w, name), y.astype(jnp.float32), low.astype(jnp.float32)
    if seen is x:
        return (gain * (y32 + low)).astype(y.dtype)
    return (y32 + (gain - 1) * linear(seen, w[name], axes).astype(jnp.float32) + gain * low).astype(y.dtype)


def _gain(w: dict, name: str) -> jax.Array:
    """`m / ||W + s B A||` `[outputs]`, float32; 1 where the layer has no adapter."""
    a, b, scale = w[f"{name}_{A}"], w[f"{name}_{B}"], w[f"{name}_{SCALE}"]
    norm = jax.lax.stop_gradient(adapted_norm(w[name], a, b, scale, TARGETS[name]))
    return jnp.where(scale > 0, w[f"{name}_{MAGNITUDE}"] / norm, 1.0)


def adapted_norm(weight: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, axes: int) -> jax.Array:
    """`||W + s B A||` over the inputs, `[outputs]` in float32, without an array of the size of W:

        ||W||^2 + 2 s <W^T A, B> + s^2 <B A A^T, B>,    sums over the rank

    Args:
      weight: `[inputs, outputs]`. a: `[inputs, r]`. b: `[r, outputs]`. axes: how many of the first are inputs.
    """
    weight, a, b = (x.astype(jnp.float32) for x in (weight, a, b))
    inputs = tuple(range(axes))
    over = (inputs, inputs)
    product = lambda x, y, axes: jax.lax.dot_general(x, y, (axes, ((), ())), precision="highest")  # noqa: E731
    cross = jnp.sum(product(a, weight, over) * b, axis=0)
    own = jnp.sum(product(product(a, a, over), b, ((1,), (0,))) * b, axis=0)
    square = jnp.sum(jnp.square(weight), axis=inputs) + 2 * scale * cross + jnp.square(scale) * own
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(jnp.float32).tiny))


def _dropped(x: jax.Array, rate: float, key: jax.Array | None, name: str) -> jax.Array:
    if not rate or key is None:
        return x
    keys = jax.random.fold_in(jax.random.wrap_key_data(key), list(TARGETS).index(name))
    kept = jax.random.bernoulli(jax.random.fold_in(keys, x.size % (1 << 31)), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)
