"""How one tensor is stored in a Hugging Face checkpoint and how it is kept here: pure functions of arrays.

Hugging Face stores a projection as `[outputs, inputs]`; here it is `[inputs, outputs]` with the heads unfolded. A
layout is the pair of inverse functions between the two, applied to one layer's tensor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jax.sharding import PartitionSpec


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor is stored there and here.

    Attributes:
      name: for error messages.
      to_ours: (their array, our shape) -> our array.
      to_theirs: our array -> their array; the inverse of `to_ours`.
      their_shape: our shape -> their shape.
      their_axes: which of our axes leads each of their axes (a merged axis is led by its slowest-varying part).
    """

    name: str
    to_ours: Callable[[Any, tuple[int, ...]], Any]
    to_theirs: Callable[[Any], Any]
    their_shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    their_axes: Callable[[int], tuple[int, ...]]

    def their_spec(self, spec: PartitionSpec, ndim: int) -> PartitionSpec:
        """Their tensor's partitioning that needs no communication to become ours, where only leading axes are split."""
        padded = tuple(spec) + (None,) * (ndim - len(spec))
        return PartitionSpec(*(padded[axis] for axis in self.their_axes(ndim)))


SAME = Layout(
    "same",
    to_ours=lambda x, shape: x.reshape(shape),
    to_theirs=lambda x: x,
    their_shape=lambda shape: shape,
    their_axes=lambda ndim: tuple(range(ndim)),
)
# [*outputs] here, [outputs] there
FLAT = Layout(
    "flat",
    to_ours=lambda x, shape: x.reshape(shape),
    to_theirs=lambda x: x.reshape(-1),
    their_shape=lambda shape: (math.prod(shape),),
    their_axes=lambda ndim: (0,),
)
# [inputs, *outputs] here, [outputs, inputs] there
SPLIT_OUTPUTS = Layout(
    "split outputs",
    to_ours=lambda x, shape: x.T.reshape(shape),
    to_theirs=lambda x: x.reshape(x.shape[0], -1).T,
    their_shape=lambda shape: (math.prod(shape[1:]), shape[0]),
    their_axes=lambda ndim: (1, 0),
)
# [*inputs, outputs] here, [outputs, inputs] there
SPLIT_INPUTS = Layout(
    "split inputs",
    to_ours=lambda x, shape: x.T.reshape(shape),
    to_theirs=lambda x: x.reshape(-1, x.shape[-1]).T,
    their_shape=lambda shape: (shape[-1], math.prod(shape[:-1])),
    their_axes=lambda ndim: (ndim - 1, 0),
)
