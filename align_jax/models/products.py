"""The decoder's products and its gated unit, with gradients written out: nothing is transposed in memory or kept twice.

Axes as in `align_jax.batch`; also W the width and F the MLP width.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

_FLOAT32 = jnp.float32


def precision(dtype) -> str | None:
    """Matrix-product precision: float32 means float32, also where the hardware would round its inputs (TF32, bf16 passes)."""
    return "highest" if jnp.dtype(dtype) == jnp.float32 else None


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: jax.Array, weight: jax.Array, axes: int = 1) -> jax.Array:
    """A product over the last axes of x and the first of the weight: `[..., W]`, `[W, ...]` -> `[..., ...]`, in their type.

        d_x = d_y weight^T,    d_weight = x^T d_y

    Args:
      x: activations. weight: in the type of x.
      axes: how many axes are summed over.
    """
    return _product(x, weight, range(x.ndim - axes, x.ndim), range(axes))


def _linear_forward(x, weight, axes):
    return linear(x, weight, axes), (x, weight)


def _linear_backward(axes, saved, d_out):
    x, weight = saved
    tokens = range(x.ndim - axes)
    d_x = _product(d_out, weight, range(x.ndim - axes, d_out.ndim), range(axes, weight.ndim))
    # In this order neither operand has to be transposed first, as the derivative that JAX would take makes XLA do.
    return d_x, _product(x, d_out, tokens, tokens)


linear.defvjp(_linear_forward, _linear_backward)


def _product(a, b, over_a, over_b):
    return jax.lax.dot_general(a, b, ((tuple(over_a), tuple(over_b)), ((), ())), precision=precision(a.dtype))


@jax.custom_vjp
def gated_unit(gate: jax.Array, up: jax.Array) -> jax.Array:
    """SwiGLU's elementwise part, `silu(gate) * up` (arXiv 2002.05202, Eq. 6), from any shape to the same.

        s = sigmoid(gate),    d_up = d gate s,    d_gate = d up s (1 + gate (1 - s))
    """
    return jax.nn.silu(gate) * up


def _gated_forward(gate, up):
    return gated_unit(gate, up), (gate, up)


def _gated_backward(saved, d_out):
    gate, up, d = (x.astype(_FLOAT32) for x in (*saved, d_out))
    s = jax.nn.sigmoid(gate)
    d_gate, d_up = d * up * s * (1 + gate * (1 - s)), d * gate * s
    return d_gate.astype(d_out.dtype), d_up.astype(d_out.dtype)


gated_unit.defvjp(_gated_forward, _gated_backward)
