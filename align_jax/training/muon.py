"""Muon: momentum of a matrix made orthogonal, layer by layer of the stacked weights; AdamW for all else."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from align_jax.models.weights import matrix_axes
from align_jax.training.decay import DECAYED, check_decay, path_of
from align_jax.training.schedules import OptimizerConfig, check_options


@dataclasses.dataclass(frozen=True)
class Muon(OptimizerConfig):
    """Orthogonalized momentum for the matrices of layers (Muon, arXiv 2502.16982), AdamW for embeddings, heads, norms, biases.

    A matrix is what a product sums over by what it makes: `[W, H E]` for queries, whose heads are unfolded here, and `[H E, W]`
    for the output of attention. Adapters' factors are AdamW's.

    Attributes:
      momentum: decay of the running mean of gradients per step.
      nesterov: look one step ahead along the momentum.
      newton_schulz_steps: iterations of a step's orthogonalization.
      rms: root mean square of a matrix's update before the learning rate, so that AdamW's learning rates fit; None scales
        by sqrt(max(1, outputs / inputs)) instead, with learning rates of another size.
      b1, b2, eps: of AdamW.
      weight_decay: times the learning rate.
      decayed: what decays: None is `matrices`, those of layers and the head; `embeddings`, these too; `all`, norms and
        biases as well. A run that began before this key goes on with `embeddings`.
      moment_dtype: of momentum and first moment; second moments are float32.
    """

    name: ClassVar[str] = "muon"
    momentum: float = 0.95
    nesterov: bool = True
    newton_schulz_steps: int = 5
    rms: float | None = 0.2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decayed: DECAYED | None = None
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_options(self, "momentum", "b1", "b2", low=0, high=1, open_high=True)
        check_options(self, "newton_schulz_steps", low=1)
        check_options(self, "rms", "eps", low=0, open_low=True)
        check_options(self, "weight_decay", low=0)
        check_decay(self)

    def rescale(self) -> optax.GradientTransformation:
        muon = scale_by_muon(
            ns_steps=self.newton_schulz_steps,
            beta=self.momentum,
            mu_dtype=jnp.dtype(self.moment_dtype),
            nesterov=self.nesterov,
            weight_dimension_numbers=dimension_numbers,
        )
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=jnp.dtype(self.moment_dtype))
        of_matrices = optax.chain(muon, optax.stateless(lambda updates, _: self._scaled(updates)))
        return optax.partition({"muon": of_matrices, "adamw": adam}, _labels)

    def _scaled(self, updates: Any) -> Any:
        """Orthogonalized matrices, whose root mean square is 1 / sqrt(max(inputs, outputs)), at the size of an update."""

        def scaled(update: jax.Array, axes: MuonDimensionNumbers) -> jax.Array:
            inputs, outputs = (math.prod(update.shape[axis] for axis in side) for side in axes)
            if self.rms is None:
                return update * math.sqrt(max(1, outputs / inputs))
            return update * (self.rms * math.sqrt(max(inputs, outputs)))

        return jax.tree.map(scaled, updates, dimension_numbers(updates))


def dimension_numbers(params: Any) -> Any:
    """For every matrix of a layer, which axes of its array a product sums over and which it makes; layers are on the others.

    Args:
      params: weights as a pytree, with nothing where Muon is not at work.
    """

    def of_leaf(keys: tuple, leaf: jax.Array) -> MuonDimensionNumbers:
        return MuonDimensionNumbers(*matrix_axes(path_of(keys)))

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def _labels(params: Any) -> Any:
    is_matrix = lambda keys, _: "adamw" if matrix_axes(path_of(keys)) is None else "muon"  # noqa: E731
    return jax.tree_util.tree_map_with_path(is_matrix, params)
