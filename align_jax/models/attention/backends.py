"""The names of the attention backends, which one a platform gets, and what each of them cannot do."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from align_jax.errors import UserError
from align_jax.models.attention import cudnn_kernels, triton
from align_jax.models.config import ModelConfig

# name -> platforms that run it
BACKENDS: dict[str, tuple[str, ...]] = {
    "xla": ("cpu", "gpu", "tpu"),
    "pallas": ("tpu",),
    "splash": ("tpu",),
    "cudnn": ("gpu",),
    "triton": ("gpu",),
}
# Those that take several prompts and several responses in a row.
_PACKED = ("xla", "pallas", "triton")
# Those that take rows that a mesh cuts.
_PIECES = ("xla", "pallas")
# Those that compute attention sinks.
_SINKS = ("xla", "pallas")
_BEST = {"tpu": "splash", "gpu": "cudnn"}
_BEST_PACKED = {"tpu": "pallas"}
# name -> the types that its kernels take
_TYPES = {
    "cudnn": ("bfloat16", "float16"),
    "splash": ("bfloat16", "float32"),
    "pallas": ("bfloat16", "float32"),
    "triton": ("bfloat16", "float16", "float32"),
}
# What JAX's own checks ask for: cuDNN by compute capability, and the largest head from Hopper on and before.
_OLDEST, _OLDEST_OF, _OLDEST_CAPABILITY = 90000, {10.3: 91100}, 8.0
_LARGEST_HEAD, _LARGEST_HEAD_HOPPER = 128, 256


def takes_packed(backend: str) -> bool:
    """Whether a backend (a resolved name) takes several prompts and several responses in a row (`GroupBatch.packed`)."""
    return backend in _PACKED


def takes_no_pieces(backend: str, sequence: int) -> str | None:
    """Why a backend cannot compute rows that are cut over `mesh.sequence` devices, or None."""
    if sequence == 1 or backend in _PIECES:
        return None
    return f"{backend!r} takes whole rows, and mesh.sequence: {sequence} cuts them; set it to auto (or xla)"


class BackendChoice(NamedTuple):
    """A backend, and, where it is not the platform's best, why not."""

    backend: str
    reason: str | None = None


def choose_backend(
    name: str,
    dtype,
    platform: str | None = None,
    config: ModelConfig | None = None,
    longest: int | None = None,
    packed: bool = False,
) -> BackendChoice:
    """The backend that `model.attention` names; `auto` is splash on TPU and cuDNN on GPU where they can, else XLA.

    For packed rows, and for a model with attention sinks, `auto` is our own kernels on TPU, else XLA.

    Args:
      name: `auto` or a key of `BACKENDS`.
      dtype: the type of queries and keys.
      platform: where the program will run; None takes what JAX runs on, and checks of an explicit name only what needs no
        device, so that a program for another machine can be traced.
      config: the model; None checks nothing of its shape.
      longest: tokens of the longest prompt row and response row together, which a sliding window may hold; None: any.
      packed: rows may hold several prompts and several responses.

    Raises:
      UserError: an unknown name, or a backend that the platform or the model does not have; with what to do.
    """
    if name != "auto" and name not in BACKENDS:
        raise UserError(f"model.attention: {name!r} is unknown; choose one of auto, {', '.join(BACKENDS)}")
    where = platform or jax.default_backend()
    if name == "auto":
        # Our kernels take what has attention sinks, and JAX's do not.
        ours = packed or (config is not None and config.sinks)
        best = (_BEST_PACKED if ours else _BEST).get(_family(where), "xla")
        reason = _lacks(best, where, dtype, config, math.inf if longest is None else longest)
        return BackendChoice("xla", reason) if reason else BackendChoice(best)
    if platform is not None and _family(where) not in BACKENDS[name]:
        raise UserError(f"model.attention: {name!r} runs on {' or '.join(BACKENDS[name])}, but the devices are {platform}")
    if reason := _lacks(name, platform, dtype, config, longest or 0):
        raise UserError(f"model.attention: {name!r} cannot be used: {reason}; set model.attention: auto (or xla)")
    return BackendChoice(name)


def resolve_backend(
    name: str,
    dtype,
    platform: str | None = None,
    config: ModelConfig | None = None,
    longest: int | None = None,
    packed: bool = False,
) -> str:
    """The name alone of `choose_backend`."""
    return choose_backend(name, dtype, platform, config, longest, packed).backend


def _lacks(backend: str, platform: str | None, dtype, config: ModelConfig | None, longest: float) -> str | None:
    """Why a backend cannot compute the attention of a model, or None."""
    kind = jnp.dtype(dtype).name
    if kind not in _TYPES.get(backend, (kind,)):
        return f"its kernels take model.dtype {' or '.join(_TYPES[backend])}, got {kind}"
    if config is not None and config.sinks and backend not in _SINKS:
        return f"{backend} computes no attention sinks, which this model has"
    if backend == "pallas":
        return None if config is None else _odd_heads(config)
    if backend == "triton":
        return triton.missing()
    if backend != "cudnn":
        return None
    if config is not None and config.attention_softcap is not None:
        return f"cuDNN has no kernel with a soft cap of logits ({config.attention_softcap}), which this model has"
    missing = None if platform is None else _no_cudnn(platform)
    return missing or (None if config is None else _no_kernel(config, longest))


def _no_cudnn(platform: str) -> str | None:
    if platform == "rocm":
        return "cuDNN runs on NVIDIA's devices, and these are AMD's"
    if changed := cudnn_kernels.changed():
        return changed
    version, capability = cudnn_kernels.installed(), _capability()
    if version is None:
        return cudnn_kernels.MISSING
    if capability is not None and capability < _OLDEST_CAPABILITY:
        return f"cuDNN's attention needs compute capability {_OLDEST_CAPABILITY} or later, and this GPU has {capability}"
    oldest = _OLDEST_OF.get(capability, _OLDEST)
    if version < oldest:
        return f"cuDNN {_written(version)} is older than {_written(oldest)} (pip install -U 'align-jax[gpu]')"
    return None


def _odd_heads(config: ModelConfig) -> str | None:
    size = config.head_size
    return f"its kernels take head sizes that are multiples of 8, this model has {size}" if size % 8 else None


def _no_kernel(config: ModelConfig, longest: float) -> str | None:
    capability = _capability()
    largest = _LARGEST_HEAD_HOPPER if capability is not None and capability >= 9 else _LARGEST_HEAD
    if config.head_size % 8 or config.head_size > largest:
        return f"cuDNN's kernels take head sizes that are multiples of 8 up to {largest}, this model has {config.head_size}"
    if config.sliding_window is not None and config.sliding_window < longest:
        return f"cuDNN has no kernel for a sliding window ({config.sliding_window} tokens) over a shared prompt"
    return None


def _written(version: int) -> str:
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def _capability() -> float | None:
    """The compute capability of this process's first device, such as 8.6; None where it is no GPU."""
    found = getattr(jax.local_devices()[0], "compute_capability", None)
    return None if found is None else float(found)


def _family(platform: str) -> str:
    return "gpu" if platform in ("cuda", "rocm") else platform
