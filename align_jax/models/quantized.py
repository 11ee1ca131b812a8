"""Weights of few bits, for a model that is not trained: integers or codes, and a scale for every block of inputs.

`int8` and `int4` are the nearest multiples of the block's largest magnitude over 127 or 7; `nf4` (QLoRA, arXiv 2305.14314,
Appendix E) are the 16 quantiles of a normal distribution. Two codes of 4 bits share a byte.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes

from align_jax.parallel.axes import constrain

BLOCK = 64  # inputs that share a scale, where they can be cut so
KINDS = ("int8", "int4", "nf4")
_LARGEST = {"int8": 127, "int4": 7, "nf4": 1}
# The 16 numbers of nf4, from -1 to 1.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_BETWEEN = tuple((a + b) / 2 for a, b in zip(NF4, NF4[1:], strict=False))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A weight `[..., I, outputs]` in blocks along its last axis of inputs, I.

    It stands where an array would, among the weights of a model. `values` and `scales` may be arrays, or what says their shapes
    or places.

    Attributes:
      values: int8 `[..., I, outputs]`, or for 4 bits uint8 `[..., I / 2, outputs]`, two inputs in a byte, the first in its low
        bits.
      scales: float32 `[..., I / block, outputs]`.
      kind: one of `KINDS`. behind: how many axes of outputs there are.
    """

    values: Any
    scales: Any
    kind: str = dataclasses.field(metadata={"static": True})
    behind: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it stands for."""
        shape, axis = list(self.values.shape), len(self.values.shape) - 1 - self.behind
        shape[axis] *= 1 if self.kind == "int8" else 2
        return tuple(shape)

    @property
    def ndim(self) -> int:
        """Of the weight that it stands for."""
        return len(self.values.shape)

    def __getitem__(self, index: Any) -> Quantized:
        """A layer, or all (`...`)."""
        return jax.tree.map(lambda x: x[index], self)

    def astype(self, dtype: Any) -> jax.Array:
        """The weight, as near as its codes are."""
        axis, codes = self.ndim - 1 - self.behind, self.values
        if self.kind != "int8":
            codes = jnp.stack([codes & 15, codes >> 4], axis=axis + 1).reshape(self.shape)
        blocks = self.scales.shape[axis]
        cut = (*self.shape[:axis], blocks, self.shape[axis] // blocks, *self.shape[axis + 1 :])
        numbers = _numbers(codes, self.kind).reshape(cut) * jnp.expand_dims(self.scales, axis + 1)
        return numbers.reshape(self.shape).astype(dtype)

    def gathered(self, *axes: str | None) -> Quantized:
        """Laid out by these logical axes of the weight, so that codes and not numbers travel between devices."""
        return dataclasses.replace(self, values=constrain(self.values, *axes), scales=constrain(self.scales, *axes))

    def no_gradient(self) -> Quantized:
        """What a derivative by it is: zero."""
        values = np.zeros(self.values.shape, dtypes.float0)
        return dataclasses.replace(self, values=values, scales=jnp.zeros_like(self.scales))


def _numbers(codes: jax.Array, kind: str) -> jax.Array:
    if kind == "int8":
        return codes.astype(jnp.float32)
    if kind == "int4":
        return codes.astype(jnp.float32) - 8
    # A sum over the 16 and no look-up: that would be a gather, which accelerators do slowly.
    found = jnp.zeros(codes.shape, jnp.float32)
    for code, number in enumerate(NF4):
        found = jnp.where(codes == code, number, found)
    return found


def block_of(inputs: int) -> int:
    """How many inputs share a scale: the largest even divisor up to `BLOCK`.

    Raises:
      ValueError: an odd number of inputs.
    """
    found = [size for size in range(2, BLOCK + 1, 2) if inputs % size == 0]
    if not found:
        raise ValueError(f"a weight with {inputs} inputs cannot be cut in blocks of an even number of them")
    return found[-1]


def quantize(weight: jax.Array, kind: str, behind: int) -> Quantized:
    """The nearest codes of a weight `[..., I, outputs]`.

    Args:
      kind: one of `KINDS`. behind: how many axes of outputs there are.
    """
    axis = weight.ndim - 1 - behind
    size = block_of(weight.shape[axis])
    cut = (*weight.shape[:axis], weight.shape[axis] // size, size, *weight.shape[axis + 1 :])
    blocks = weight.astype(jnp.float32).reshape(cut)
    largest = jnp.max(jnp.abs(blocks), axis=axis + 1)
    scales = largest / _LARGEST[kind]
    numbers = (blocks / jnp.expand_dims(jnp.where(scales > 0, scales, 1.0), axis + 1)).reshape(weight.shape)
    if kind == "int8":
        return Quantized(jnp.round(numbers).astype(jnp.int8), scales, kind, behind)
    codes = jnp.round(numbers) + 8 if kind == "int4" else jnp.searchsorted(jnp.asarray(_BETWEEN), numbers)
    pairs = codes.astype(jnp.uint8).reshape(*weight.shape[:axis], weight.shape[axis] // 2, 2, *weight.shape[axis + 1 :])
    low, high = (jax.lax.index_in_dim(pairs, n, axis + 1, keepdims=False) for n in (0, 1))
    return Quantized(low | (high << 4), scales, kind, behind)


def kind_of(weights: dict) -> str | None:
    """The kind of few bits that a model's weights are in; None: they are as they were."""
    layers = weights["layers"].values()
    return next((weight.kind for weight in layers if isinstance(weight, Quantized)), None)


def structs(shape: tuple[int, ...], kind: str, behind: int) -> Quantized:
    """What `quantize` makes of a weight of this shape, as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(lambda w: quantize(w, kind, behind), jax.ShapeDtypeStruct(shape, jnp.float32))
