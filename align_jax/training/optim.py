"""Optimizers: optax chains, one frozen dataclass of options for each (see `schedules` for what all of them have)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from align_jax.training.decay import DECAYED, check_decay, decay_mask
from align_jax.training.muon import Muon
from align_jax.training.schedule_free import ScheduleFree, averaged, gradient_point
from align_jax.training.schedules import (
    SCHEDULES,
    Horizon,
    OptimizerConfig,
    check_options,
    make_schedule,
    scale_by_rate,
    warmup_of,
)

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AdamW",
    "Adafactor",
    "Horizon",
    "Lion",
    "Muon",
    "OptimizerConfig",
    "RMSprop",
    "ScheduleFree",
    "apply_updates",
    "decay_mask",
    "gradient_point",
    "make_optimizer",
    "make_schedule",
    "warmup_of",
]


@dataclasses.dataclass(frozen=True)
class AdamW(OptimizerConfig):
    """Adam with decoupled weight decay.

    Attributes:
      b1: decay of the first moment per step.
      b2: decay of the second moment per step.
      eps: added to the root of the second moment.
      weight_decay: times the learning rate.
      decayed: what decays: None is `matrices`, those of layers and the head; `embeddings`, these too; `all`, norms and
        biases as well. A run that began before this key goes on with `embeddings`.
      moment_dtype: of the first moment; the second is float32.
    """

    name: ClassVar[str] = "adamw"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decayed: DECAYED | None = None
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_options(self, "b1", "b2", low=0, high=1, open_high=True)
        check_options(self, "eps", low=0, open_low=True)
        check_options(self, "weight_decay", low=0)
        check_decay(self)

    def rescale(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=jnp.dtype(self.moment_dtype))


@dataclasses.dataclass(frozen=True)
class Lion(OptimizerConfig):
    """Sign of an interpolated momentum (arXiv 2302.06675), decoupled weight decay.

    Attributes:
      b1: weight of the momentum where it is interpolated with the gradient.
      b2: decay of the momentum per step.
      weight_decay: times the learning rate.
      decayed: what decays: None is `matrices`, those of layers and the head; `embeddings`, these too; `all`, norms and
        biases as well. A run that began before this key goes on with `embeddings`.
      moment_dtype: of the momentum.
    """

    name: ClassVar[str] = "lion"
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    decayed: DECAYED | None = None
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_options(self, "b1", "b2", low=0, high=1, open_high=True)
        check_options(self, "weight_decay", low=0)
        check_decay(self)

    def rescale(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2, mu_dtype=jnp.dtype(self.moment_dtype))


@dataclasses.dataclass(frozen=True)
class Adafactor(OptimizerConfig):
    """Factored second moments (arXiv 1804.04235) without parameter scaling, decoupled weight decay.

    Layers are stacked, so update clipping takes the root mean square over all layers of a weight.

    Attributes:
      decay: exponent of the second moment's decay, `1 - step^-decay`.
      eps: added to squared gradients.
      update_clip: updates of a weight are scaled down to this root mean square; None is off.
      momentum: decay of a running mean of updates per step; None is off.
      weight_decay: times the learning rate.
      decayed: what decays: None is `matrices`, those of layers and the head; `embeddings`, these too; `all`, norms and
        biases as well. A run that began before this key goes on with `embeddings`.
    """

    name: ClassVar[str] = "adafactor"
    decay: float = 0.8
    eps: float = 1e-30
    update_clip: float | None = 1.0
    momentum: float | None = None
    weight_decay: float = 0.0
    decayed: DECAYED | None = None

    def __post_init__(self):
        super().__post_init__()
        check_options(self, "decay", low=0, high=1, open_low=True)
        check_options(self, "eps", "update_clip", low=0, open_low=True)
        check_options(self, "momentum", low=0, high=1, open_high=True)
        check_options(self, "weight_decay", low=0)
        check_decay(self)

    def rescale(self) -> optax.GradientTransformation:
        parts = [optax.scale_by_factored_rms(decay_rate=self.decay, epsilon=self.eps)]
        if self.update_clip is not None:
            parts.append(optax.clip_by_block_rms(self.update_clip))
        if self.momentum is not None:
            parts.append(optax.ema(self.momentum, debias=False))
        return optax.chain(*parts)


@dataclasses.dataclass(frozen=True)
class RMSprop(OptimizerConfig):
    """PyTorch's RMSprop, which the GDPO authors train with: eps outside the root, momentum before the learning rate.

    Attributes:
      decay: of the second moment per step.
      eps: added to the root of the second moment.
      momentum: decay of the sum of updates per step; 0 is off.
    """

    name: ClassVar[str] = "rmsprop"
    decay: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_options(self, "decay", "momentum", low=0, high=1, open_high=True)
        check_options(self, "eps", low=0, open_low=True)

    def rescale(self) -> optax.GradientTransformation:
        rms = optax.scale_by_rms(self.decay, self.eps, eps_in_sqrt=False)
        return optax.chain(rms, optax.trace(self.momentum)) if self.momentum else rms


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {cls.name: cls for cls in (AdamW, Lion, Adafactor, RMSprop, Muon, ScheduleFree)}


def _in_float32(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Optimizer state and arithmetic in float32 whatever the parameters are stored in."""

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(updates: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, Any]:
        return inner.update(cast(updates), state, None if params is None else cast(params), **more)

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(cast(params)), update)


def make_optimizer(spec: OptimizerConfig, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """The optimizer as one optax transformation over any pytree of arrays.

    `theta <- theta - lr_t * (u_t + weight_decay * theta)`, where `u_t` is the optimizer's rescaling of the gradient
    after global-norm clipping; `spec.decayed` says which weights decay. `schedule_free` averages what this gives (see
    `averaged`), with gradients at `gradient_point`. Moments are float32 unless `moment_dtype` says otherwise.

    Args:
      spec: one of `OPTIMIZERS`.
      total_steps: optimizer steps of the whole run, which the schedule needs.

    Returns:
      An `optax.GradientTransformation`; its `update` needs `params`, and its updates are float32; `apply_updates` adds them.
      `update(..., horizon=Horizon.of(spec, steps))` takes another length than `total_steps`, which may be traced.
    """
    parts = [] if spec.clip_norm is None else [optax.clip_by_global_norm(spec.clip_norm)]
    parts.append(spec.rescale())
    if getattr(spec, "weight_decay", 0.0):
        mask = functools.partial(decay_mask, decayed=spec.decayed)
        parts.append(optax.add_decayed_weights(spec.weight_decay, mask=mask))
    if isinstance(spec, ScheduleFree):
        return _in_float32(averaged(optax.chain(*parts), spec, total_steps))
    return _in_float32(optax.chain(*parts, scale_by_rate(spec, total_steps)))


def apply_updates(params: Any, updates: Any, seed: int, step: jax.Array) -> Any:
    """`theta + u` in the parameters' types; what bfloat16 cannot hold is rounded up or down at random, right on average.

        P(up) = (x - down) / (up - down),    down <= x = theta + u <= up

    bfloat16 holds 8 bits: to the nearest, an update of less than 1/512 of its parameter would always be lost, which at the
    learning rates of preference optimization is nearly every one (stochastic rounding: arXiv 1502.02551, Eq. 2).

    Args:
      params: pytree of float32 or bfloat16 arrays. updates: the same in float32.
      seed: of the run. step: int32 scalar, counts updates; with the seed and the leaf it keys the random bits.
    """
    leaves, tree = jax.tree.flatten(params)
    sums = [p.astype(jnp.float32) + u for p, u in zip(leaves, tree.flatten_up_to(updates), strict=True)]

    def rounded(n: int, leaf: jax.Array, value: jax.Array) -> jax.Array:
        if leaf.dtype != jnp.bfloat16:
            return value.astype(leaf.dtype)
        return _round_at_random(value, jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), n))

    return tree.unflatten([rounded(n, leaf, value) for n, (leaf, value) in enumerate(zip(leaves, sums, strict=True))])


def _round_at_random(value: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to bfloat16: random bits are added below its last one, and the rest is cut off."""
    bits = jax.lax.bitcast_convert_type(value, jnp.uint32)
    cut = (bits + jax.random.bits(key, value.shape, jnp.uint16)) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(cut, jnp.float32)
    return jnp.where(jnp.isfinite(value), rounded, value).astype(jnp.bfloat16)
