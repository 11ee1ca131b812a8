"""The names of the attention backends, and which one a platform gets."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align_jax.errors import UserError

# name -> platforms that run it
BACKENDS: dict[str, tuple[str, ...]] = {
    "xla": ("cpu", "gpu", "tpu"),
    "splash": ("tpu",),
    "cudnn": ("gpu",),
}
_HALF_ONLY = {"cudnn"}  # whose kernels take 16-bit types only
_BEST = {"tpu": "splash", "gpu": "cudnn"}


def resolve_backend(name: str, dtype, platform: str | None = None) -> str:
    """The backend that `model.attention` names; `auto` is splash on TPU, cuDNN on GPU, XLA elsewhere.

    Args:
      name: `auto` or a key of `BACKENDS`.
      dtype: the type of queries and keys; cuDNN has kernels for 16-bit types only.
      platform: where the program will run; None takes what JAX runs on, and checks an explicit name no further, so that
        a program for another machine can be traced.

    Raises:
      UserError: an unknown name, or a backend that the platform does not have.
    """
    if name != "auto" and name not in BACKENDS:
        raise UserError(f"model.attention: {name!r} is unknown; choose one of auto, {', '.join(BACKENDS)}")
    half = jnp.dtype(dtype).itemsize == 2
    if name == "auto":
        best = _BEST.get(_family(platform or jax.default_backend()), "xla")
        return "xla" if best in _HALF_ONLY and not half else best
    if platform is not None and _family(platform) not in BACKENDS[name]:
        raise UserError(f"model.attention: {name!r} runs on {' or '.join(BACKENDS[name])}, but the devices are {platform}")
    if name in _HALF_ONLY and not half:
        raise UserError(f"model.attention: {name!r} needs model.dtype bfloat16 or float16, got {jnp.dtype(dtype).name}")
    return name


def _family(platform: str) -> str:
    return "gpu" if platform in ("cuda", "rocm") else platform
