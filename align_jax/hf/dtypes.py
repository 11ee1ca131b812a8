"""The three float types that weights are read and written in, and their names in safetensors files."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from align_jax.errors import UserError

CODES = {"F32": np.dtype(jnp.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(jnp.float16)}
_NAMES = {dtype: code for code, dtype in CODES.items()}


def resolve_dtype(value, what: str) -> np.dtype:
    """The NumPy type of a name or a type; `what` says in the error where the value came from.

    Raises:
      UserError: anything but float32, bfloat16 and float16.
    """
    try:
        dtype = np.dtype(jnp.dtype(value))
    except TypeError:
        dtype = None
    if dtype not in _NAMES:
        raise UserError(f"{what} is {value!r}; supported: float32, bfloat16, float16")
    return dtype


def code(dtype) -> str:
    """The name of a float type in a safetensors header."""
    return _NAMES[np.dtype(dtype)]
