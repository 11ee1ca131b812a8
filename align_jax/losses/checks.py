"""Checks of what can be known before the arrays hold numbers: shapes, dtypes and Python numbers."""

from __future__ import annotations

import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def as_floats(**arrays: ArrayLike) -> tuple[jax.Array, ...]:
    """The arrays as float32, in the order given; ValueError where their shapes differ or they are not real numbers."""
    check_same_shape(**arrays)
    for name, array in arrays.items():
        dtype = jnp.result_type(array)
        if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            raise ValueError(f"{name} must hold real numbers, got dtype {dtype}")
    return tuple(jnp.asarray(array).astype(jnp.float32) for array in arrays.values())


def as_mask(mask: ArrayLike) -> jax.Array:
    """The mask as bool; anything but 0 is True."""
    return jnp.asarray(mask).astype(bool)


def check_same_shape(**arrays: ArrayLike) -> None:
    """Raises ValueError, which names every shape, where the arrays do not all have one shape."""
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"the arrays must have one shape, got {listed}")


def check_set_axis(name: str, array: ArrayLike) -> None:
    """Raises ValueError where the array has no axis for the members of a set."""
    if jnp.ndim(array) == 0:
        raise ValueError(f"{name} must have a last axis (responses or beliefs of a group), got a scalar")


def check_positive(name: str, value) -> None:
    """Raises ValueError unless the number is above 0 and finite; what is traced cannot be looked at and passes."""
    if _known(value) and not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def check_not_negative(name: str, value) -> None:
    """Raises ValueError unless the number is at least 0 and finite; what is traced passes."""
    if _known(value) and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")


def check_label_smoothing(value) -> None:
    """Raises ValueError outside [0, 0.5), where a preference would mean its opposite; what is traced passes."""
    if _known(value) and not 0 <= value < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {value!r}")


def check_smoothing(name: str, value) -> None:
    """Raises ValueError outside (0, 1); what is traced passes."""
    if _known(value) and not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1), got {value!r}")


def check_between(name: str, value, low: float, high: float, *, closed_low: bool = False, closed_high: bool = False) -> None:
    """Raises ValueError outside (low, high), or with the bounds that are closed; what is traced passes."""
    if not _known(value):
        return
    above = low <= value if closed_low else low < value
    below = value <= high if closed_high else value < high
    if not (above and below):
        raise ValueError(
            f"{name} must be in {'[' if closed_low else '('}{low}, {high}{']' if closed_high else ')'}, got {value!r}"
        )


def _known(value) -> bool:
    return isinstance(value, numbers.Real | np.number)
