"""Rotary position embeddings (arXiv 2104.09864), with the frequency scalings that models are published with."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.models.config import ModelConfig, RopeScaling
from align_jax.models.kinds import GLOBAL, NOT


def frequencies(config: ModelConfig, rope: str = GLOBAL, length: int | None = None) -> np.ndarray:
    """The angular frequencies `theta^(-2i/d)`, scaled as the config asks: float32 `[d / 2]`, d dimensions of a head rotated.

    Computed in NumPy, so that they are a constant of the program.

    Args:
      config: the model.
      rope: of which layers, see `align_jax.models.kinds`; zeros, the identity, for those that do not rotate.
      length: tokens of the longest text, for scalings that depend on it; None is `config.rope_length`.
    """
    size = config.rotary_size or config.head_size
    if rope == NOT:
        return np.zeros(size // 2, np.float32)
    scaling = config.rope_scaling
    if rope != GLOBAL:
        return _unscaled(config.local_rope_theta, size)
    if scaling is None:
        return _unscaled(config.rope_theta, size)
    length = length or config.rope_length or scaling.original_length
    if scaling.kind == "dynamic":
        # Neural tangent kernel scaling: the base grows with the text.
        grown = scaling.factor * max(length, scaling.original_length) / scaling.original_length - (scaling.factor - 1)
        return _unscaled(config.rope_theta * grown ** (size / (size - 2)), size)
    freqs = _unscaled(config.rope_theta, size)
    if scaling.kind == "linear":
        return freqs / np.float32(scaling.factor)
    if scaling.kind == "llama3":
        return _llama3(freqs, scaling)
    if scaling.kind == "yarn":
        return _yarn(freqs, scaling, config.rope_theta)
    factors = scaling.long_factors if length > scaling.original_length else scaling.short_factors
    return (freqs / np.asarray(factors, np.float32)).astype(np.float32)


def _unscaled(theta: float, size: int) -> np.ndarray:
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return (1.0 / np.float32(theta) ** exponents).astype(np.float32)


def _llama3(freqs: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    wavelengths = 2 * np.pi / freqs
    low = scaling.original_length / scaling.low_freq_factor
    high = scaling.original_length / scaling.high_freq_factor
    ramp = (scaling.original_length / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    smooth = (1 - ramp) * freqs / scaling.factor + ramp * freqs
    scaled = np.where(wavelengths > low, freqs / scaling.factor, np.where(wavelengths < high, freqs, smooth))
    return scaled.astype(np.float32)


def _yarn(freqs: np.ndarray, scaling: RopeScaling, theta: float) -> np.ndarray:
    """Frequencies that turn often in the original context are kept, those that turn seldom are divided (arXiv 2309.00071)."""
    size = 2 * len(freqs)

    def dimension(turns: float) -> float:
        return size * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = np.clip((np.arange(len(freqs)) - low) / ((high - low) or 0.001), 0, 1)
    return (freqs / scaling.factor * ramp + freqs * (1 - ramp)).astype(np.float32)


def rotation(positions: jax.Array, freqs: np.ndarray, factor: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotation at each position, times a factor: `[..., T]` -> two float32 `[..., T, 1, d / 2]`."""
    angles = positions[..., None].astype(jnp.float32) * freqs
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def rotations(config: ModelConfig, ropes: tuple[str, ...], positions: jax.Array, length: int | None = None):
    """Cosines and sines for each of `ropes`, on a leading axis; without that axis where all are the same.

    Args:
      positions: int32 `[..., T]`. length: as of `frequencies`.

    Returns:
      Two float32 `[kinds, ..., T, 1, d / 2]`, or `[..., T, 1, d / 2]`.
    """

    def of(rope: str) -> tuple[jax.Array, jax.Array]:
        scaled = rope == GLOBAL and config.rope_scaling is not None
        return rotation(positions, frequencies(config, rope, length), config.rope_scaling.attention_factor if scaled else 1.0)

    if len(set(ropes)) == 1:
        return of(ropes[0])
    return tuple(jnp.stack(each) for each in zip(*map(of, ropes), strict=True))


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, scale: float | None = None) -> jax.Array:
    """Rotates heads `[..., T, H, head_size]`; the two halves of what is rotated are the real and imaginary parts.

    Args:
      cos, sin: `[..., T, 1, d / 2]`; what follows the first d dimensions of a head stays as it is.
      scale: what the result is multiplied by, before it is rounded to the type of x; None is 1.
    """
    size = 2 * cos.shape[-1]
    whole = size == x.shape[-1]
    first, second = jnp.split((x if whole else x[..., :size]).astype(jnp.float32), 2, axis=-1)
    rest = [] if whole else [x[..., size:].astype(jnp.float32)]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, *rest], axis=-1)
    return (rotated if scale is None else rotated * scale).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def rotate_by_kind(x: jax.Array, cos: jax.Array, sin: jax.Array, kind: jax.Array, scale: float | None = None) -> jax.Array:
    """`rotate` by one of several rotations `[kinds, ..., T, 1, d / 2]`, chosen by a number that may be traced.

    Left to JAX, the chosen cosines and sines of every layer would be kept for the backward pass.
    """
    return rotate(x, cos[kind], sin[kind], scale)


def _rotate_forward(x, cos, sin, kind, scale):
    return rotate_by_kind(x, cos, sin, kind, scale), (cos, sin, kind)


def _rotate_backward(scale, saved, d_out):
    cos, sin, kind = saved
    return rotate(d_out, cos[kind], -sin[kind], scale), None, None, None


rotate_by_kind.defvjp(_rotate_forward, _rotate_backward)
