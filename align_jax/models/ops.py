"""The parts of a layer, with gradients written out, each with what it gains: see `tools/compare_gradients.py`.

Axes as in `align_jax.batch`; also W the width and F the MLP width.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from align_jax.models.quantized import Quantized
from align_jax.models.remat import PRODUCT
from align_jax.parallel import sequence

_FLOAT32 = jnp.float32


def precision(dtype) -> str | None:
    """Matrix-product precision: float32 means float32, also where the hardware would round its inputs (TF32, bf16 passes)."""
    return "highest" if jnp.dtype(dtype) == jnp.float32 else None


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: jax.Array, weight: jax.Array, axes: int = 1) -> jax.Array:
    """A product over the last axes of x and the first of the weight: `[..., W]`, `[W, ...]` -> `[..., ...]`, in their type.

        d_x = d_y weight^T,    d_weight = x^T d_y

    JAX's own derivative makes XLA transpose an operand on a CPU, 1.05 times the step's processor time (1.03 to 1.07;
    configs/bench-cpu.yaml); on TPU v5p the compiled programs are equal.

    Args:
      x: activations. weight: in the type of x, or `Quantized`, which has no gradient, and of which only codes are kept.
      axes: how many axes are summed over.
    """
    return _linear(x, weight, axes)


def _linear(x, weight, axes):
    weight = _plain(weight, x.dtype)
    return _product(x, weight, range(x.ndim - axes, x.ndim), range(axes))


def _linear_forward(x, weight, axes):
    # Not `linear` itself: that would be one operation, in which no name is seen.
    return checkpoint_name(_linear(x, weight, axes), PRODUCT), (None if isinstance(weight, Quantized) else x, weight)


def _linear_backward(axes, saved, d_out):
    x, weight = saved
    if isinstance(weight, Quantized):
        outputs = weight.ndim - axes
        over = range(d_out.ndim - outputs, d_out.ndim)
        return _product(d_out, _plain(weight, d_out.dtype), over, range(axes, weight.ndim)), weight.no_gradient()
    tokens = range(x.ndim - axes)
    d_x = _product(d_out, weight, range(x.ndim - axes, d_out.ndim), range(axes, weight.ndim))
    if sequence.pieces() > 1:  # one axis of tokens could not be cut by position: each device would get all of them
        return d_x, _product(x, d_out, tokens, tokens)
    # In this order, and with one axis of tokens, neither operand has to be transposed first, as the derivative that JAX
    # would take makes XLA do.
    count = math.prod(x.shape[: len(tokens)])
    d_weight = _product(x.reshape(count, -1), d_out.reshape(count, -1), [0], [0])
    return d_x, d_weight.reshape(weight.shape)


def _plain(weight, dtype):
    return weight.astype(dtype) if isinstance(weight, Quantized) else weight


linear.defvjp(_linear_forward, _linear_backward)


def _product(a, b, over_a, over_b):
    return jax.lax.dot_general(a, b, ((tuple(over_a), tuple(over_b)), ((), ())), precision=precision(a.dtype))


_gelu = partial(jax.nn.gelu, approximate=True)
_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": _gelu}
CLAMPED = "clamped_swiglu"
_ALPHA, _LIMIT = 1.702, 7.0


def activate(x: jax.Array, activation: str) -> jax.Array:
    """silu, or gelu_tanh: the approximation of gelu by tanh."""
    return _ACTIVATIONS[activation](x)


def gated_unit(gate: jax.Array, up: jax.Array, activation: str) -> jax.Array:
    """`act(gate) * up`; or of clamped_swiglu, with `g = min(gate, 7)` and u = up within -7 and 7:

        (u + 1) g sigmoid(1.702 g)

    computed in float32, rounded once (GPT-OSS, arXiv 2508.10925, section 2).
    """
    if activation != CLAMPED:
        return activate(gate, activation) * up
    g, u = _clamped(gate.astype(_FLOAT32), up.astype(_FLOAT32))
    return ((u + 1) * g * jax.nn.sigmoid(_ALPHA * g)).astype(gate.dtype)


def _clamped(gate, up):
    return jnp.minimum(gate, _LIMIT), jnp.clip(up, -_LIMIT, _LIMIT)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def gated_linear(gate: jax.Array, up: jax.Array, weight: jax.Array, activation: str = "silu") -> jax.Array:
    """SwiGLU and the product after it, `(silu(gate) * up) weight` (arXiv 2002.05202, Eq. 6), `[..., F]` x 2 -> `[..., W]`.

        s = sigmoid(gate),  u = gate s up,    d_u = d_y weight^T,  d_weight = u^T d_y
        d_up = d_u gate s,    d_gate = d_u up s (1 + gate (1 - s))

    The elementwise part is computed again in the backward pass instead of kept, and in float32: in bfloat16, d_gate and d_up
    are off by 0.17% (rounding) instead of the 0.38% of JAX's derivative. That also takes 1.29 times the step's temporaries on a
    CPU (configs/bench-cpu.yaml), 1.66 times on TPU v5p (LLaMA-3-8B, 16 chips), unless it is checkpointed.

    Args:
      activation: silu, or gelu_tanh in its place; or all of `gated_unit`.
    """
    return _linear(gated_unit(gate, up, activation), weight, 1)


def _gated_forward(gate, up, weight, activation):
    return checkpoint_name(_linear(gated_unit(gate, up, activation), weight, 1), PRODUCT), (gate, up, weight)


def _gated_backward(activation, saved, d_out):
    gate, up, weight = saved
    d_unit, d_weight = _linear_backward(1, (gated_unit(gate, up, activation), weight), d_out)
    return *gate_gradients(gate, up, d_unit, activation), d_weight


def gate_gradients(gate: jax.Array, up: jax.Array, d_unit: jax.Array, activation: str) -> tuple[jax.Array, jax.Array]:
    """The gradients of gate and up from that of `gated_unit`, computed in float32."""
    dtype = d_unit.dtype
    gate, up, d = (x.astype(_FLOAT32) for x in (gate, up, d_unit))
    if activation == "silu":
        s = jax.nn.sigmoid(gate)
        d_gate, d_up = d * up * s * (1 + gate * (1 - s)), d * gate * s
    elif activation == CLAMPED:
        g, u = _clamped(gate, up)
        s = jax.nn.sigmoid(_ALPHA * g)
        d_gate = jnp.where(gate <= _LIMIT, d * (u + 1) * s * (1 + _ALPHA * g * (1 - s)), 0)
        d_up = jnp.where(jnp.abs(up) <= _LIMIT, d * g * s, 0)
    else:
        value, slope = jax.jvp(_gelu, (gate,), (jnp.ones_like(gate),))
        d_gate, d_up = d * up * slope, d * value
    return d_gate.astype(dtype), d_up.astype(dtype)


gated_linear.defvjp(_gated_forward, _gated_backward)


class Norm(NamedTuple):
    """The numbers of a norm: added to the mean square; added to the weight; how many last axes are one vector; whether the
    product with the weight is rounded, and not what goes into it."""

    eps: float
    offset: float = 0.0
    axes: int = 1
    late: bool = False


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, weight: jax.Array, norm: Norm | float) -> jax.Array:
    """Root-mean-square norm in float32 (arXiv 1910.07467, Eq. 4), `[..., W]` in the type of x.

        y = x s w,  s = 1 / sqrt(mean(x^2) + eps),    d_x = s w d_y - x s^3 mean(x w d_y),    d_w = sum x s d_y

    Left to JAX, the step's temporaries are 1.11 times as large on a CPU (configs/bench-cpu.yaml), 1.47 times on TPU v5p
    (LLaMA-3-8B, 16 chips), and the gradient of a bfloat16 weight is off by 1.0% instead of 0.17% (rounding).

    Args:
      x: activations. weight: `[W]`, or as many axes as the norm has. norm: its numbers, or eps alone.
    """
    norm = _norm_of(norm)
    scaled = x.astype(_FLOAT32) * _inverse_rms(x, norm)
    if norm.late:
        return (scaled * _shifted(weight, norm)).astype(x.dtype)
    return (scaled.astype(x.dtype) * _shifted(weight, norm)).astype(x.dtype)


def _norm_of(norm: Norm | float) -> Norm:
    return norm if isinstance(norm, Norm) else Norm(norm)


def _shifted(weight, norm: Norm):
    return weight.astype(_FLOAT32) + norm.offset if norm.offset else weight


def _inverse_rms(x, norm: Norm):
    axes = tuple(range(-norm.axes, 0)) if norm.axes > 1 else -1
    return jax.lax.rsqrt(jnp.mean(jnp.square(x.astype(_FLOAT32)), axis=axes, keepdims=True) + norm.eps)


def _norm_forward(x, weight, norm):
    return rms_norm(x, weight, norm), (x, weight)


def _norm_backward(norm, saved, d_out):
    norm = _norm_of(norm)
    x, weight = saved
    s, x32, d = _inverse_rms(x, norm), x.astype(_FLOAT32), d_out.astype(_FLOAT32)
    scaled = d * _shifted(weight, norm).astype(_FLOAT32)
    axes = tuple(range(-norm.axes, 0)) if norm.axes > 1 else -1
    d_x = s * scaled - x32 * s**3 * jnp.mean(x32 * scaled, axis=axes, keepdims=True)
    d_weight = jnp.sum(x32 * s * d, axis=range(x.ndim - norm.axes))
    return d_x.astype(x.dtype), d_weight.astype(weight.dtype)


rms_norm.defvjp(_norm_forward, _norm_backward)


def soft_cap(logits: jax.Array, cap: float | None) -> jax.Array:
    """`c tanh(x / c)`, which bounds logits to c; themselves where there is no c (Gemma 2, arXiv 2408.00118, section 2)."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def soft_cap_slope(capped: jax.Array, cap: float) -> jax.Array:
    """The derivative of `soft_cap` where it is `capped`: `1 - (y / c)^2`."""
    return 1 - jnp.square(capped / cap)


def lookup(table: jax.Array, tokens: jax.Array, dtype) -> jax.Array:
    """Rows of a table: `[V, W]`, int `[...]` -> `[..., W]` in `dtype`."""
    # Taken in float32, so that gradients are added up in it: a frequent token has thousands of terms, and in bfloat16 its sum
    # stops growing after a few hundred of them.
    return table.astype(_FLOAT32)[tokens].astype(dtype)
