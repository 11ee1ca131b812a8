"""Rotary position embeddings (arXiv 2104.09864), with LLaMA's two frequency scalings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.models.config import ModelConfig


def frequencies(config: ModelConfig) -> np.ndarray:
    """The angular frequencies `theta^(-2i/d)`, scaled as the config asks: float32 `[head_size / 2]`.

    Computed in NumPy, so that they are a constant of the program.
    """
    exponents = np.arange(0, config.head_size, 2, dtype=np.float32) / np.float32(config.head_size)
    freqs = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return freqs
    if scaling.kind == "linear":
        return freqs / np.float32(scaling.factor)
    if scaling.kind == "llama3":
        wavelengths = 2 * np.pi / freqs
        low = scaling.original_length / scaling.low_freq_factor
        high = scaling.original_length / scaling.high_freq_factor
        ramp = (scaling.original_length / wavelengths - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        smooth = (1 - ramp) * freqs / scaling.factor + ramp * freqs
        scaled = np.where(wavelengths > low, freqs / scaling.factor, np.where(wavelengths < high, freqs, smooth))
        return scaled.astype(np.float32)
    raise ValueError(f"unknown rope scaling {scaling.kind!r}; known: linear, llama3")


def rotation(positions: jax.Array, freqs: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotation at each position: `[..., T]` -> two float32 `[..., T, 1, head_size / 2]`."""
    angles = positions[..., None].astype(jnp.float32) * freqs
    return jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates heads `[..., T, H, head_size]`; the two halves of a head are the real and imaginary parts."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
