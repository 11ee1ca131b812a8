"""Optimizers and learning-rate schedules: optax chains, one frozen dataclass of options for each optimizer."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from align_jax.errors import UserError, check_fields
from align_jax.models.weights import decays

SCHEDULES = Literal["constant", "linear", "cosine"]


def _check(spec: Any, *names: str, **bounds: Any) -> None:
    check_fields("optimizer", spec, *names, **bounds)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What every optimizer has: the learning rate, its schedule and gradient clipping.

    Attributes:
      name: the value of `optimizer.name`.
      learning_rate: the peak; where a config gives none, what is usual for its objective: 2e-5 for `sft`, 1e-5 for `reward`,
        1e-6 for all others.
      schedule: what follows the warm-up.
      warmup_steps: optimizer steps of linear warm-up; None is 0, or what `warmup_ratio` says.
      warmup_ratio: the same as a fraction of all steps.
      final_ratio: learning rate at the end over the peak; None is 0; `constant` has none.
      schedule_steps: optimizer steps that the schedule is made for; None is all steps of the run. Beyond it the rate stays at
        what it is at the end; a run that is made longer keeps its rates where this is the former number of steps.
      clip_norm: gradients are scaled down to this global L2 norm; None is off.
    """

    name: ClassVar[str]

    learning_rate: float = 1e-6
    schedule: SCHEDULES = "cosine"
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    final_ratio: float | None = None
    schedule_steps: int | None = None
    clip_norm: float | None = 1.0

    def rescale(self) -> optax.GradientTransformation:
        """Gradient to update, before weight decay and learning rate."""
        raise TypeError(f"{type(self).__name__} is the base of the optimizers; use one of OPTIMIZERS")

    def __post_init__(self):
        _check(self, "learning_rate", "clip_norm", low=0, open_low=True)
        _check(self, "warmup_steps", low=0)
        _check(self, "warmup_ratio", low=0, high=1, open_high=True)
        _check(self, "final_ratio", low=0, high=1)
        _check(self, "schedule_steps", low=1, hint="or null for the steps of the run")
        if self.schedule not in get_args(SCHEDULES):
            raise UserError(f"optimizer.schedule: {self.schedule!r} is not one of {', '.join(get_args(SCHEDULES))}")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise UserError("optimizer.warmup_ratio: give warmup_steps or warmup_ratio, not both")
        if self.schedule == "constant" and self.final_ratio is not None:
            raise UserError("optimizer.final_ratio: the constant schedule does not use it; remove it")
        if self.schedule == "constant" and self.schedule_steps is not None and not (self.warmup_steps or self.warmup_ratio):
            raise UserError("optimizer.schedule_steps: the constant schedule without warm-up does not use it; remove it")


@dataclasses.dataclass(frozen=True)
class AdamW(OptimizerConfig):
    """Adam with decoupled weight decay.

    Attributes:
      b1: decay of the first moment per step.
      b2: decay of the second moment per step.
      eps: added to the root of the second moment.
      weight_decay: times the learning rate; norms are not decayed.
      moment_dtype: of the first moment; the second is float32.
    """

    name: ClassVar[str] = "adamw"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        super().__post_init__()
        _check(self, "b1", "b2", low=0, high=1, open_high=True)
        _check(self, "eps", low=0, open_low=True)
        _check(self, "weight_decay", low=0)

    def rescale(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=jnp.dtype(self.moment_dtype))


@dataclasses.dataclass(frozen=True)
class Lion(OptimizerConfig):
    """Sign of an interpolated momentum (arXiv 2302.06675), decoupled weight decay.

    Attributes:
      b1: weight of the momentum where it is interpolated with the gradient.
      b2: decay of the momentum per step.
      weight_decay: times the learning rate; norms are not decayed.
      moment_dtype: of the momentum.
    """

    name: ClassVar[str] = "lion"
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        super().__post_init__()
        _check(self, "b1", "b2", low=0, high=1, open_high=True)
        _check(self, "weight_decay", low=0)

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
      weight_decay: times the learning rate; norms are not decayed.
    """

    name: ClassVar[str] = "adafactor"
    decay: float = 0.8
    eps: float = 1e-30
    update_clip: float | None = 1.0
    momentum: float | None = None
    weight_decay: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        _check(self, "decay", low=0, high=1, open_low=True)
        _check(self, "eps", "update_clip", low=0, open_low=True)
        _check(self, "momentum", low=0, high=1, open_high=True)
        _check(self, "weight_decay", low=0)

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
        _check(self, "decay", "momentum", low=0, high=1, open_high=True)
        _check(self, "eps", low=0, open_low=True)

    def rescale(self) -> optax.GradientTransformation:
        rms = optax.scale_by_rms(self.decay, self.eps, eps_in_sqrt=False)
        return optax.chain(rms, optax.trace(self.momentum)) if self.momentum else rms


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {cls.name: cls for cls in (AdamW, Lion, Adafactor, RMSprop)}


def warmup_of(spec: OptimizerConfig, total_steps: int) -> int:
    """Steps of warm-up of a run: those asked for, or where its schedule has fewer steps, a tenth of it."""
    total_steps = spec.schedule_steps or total_steps
    asked = spec.warmup_steps or round((spec.warmup_ratio or 0.0) * total_steps)
    return asked if asked <= total_steps else -(-total_steps // 10)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Horizon:
    """What a schedule takes of the run's length, as an input of the step: a longer run needs no other program.

    Reciprocals, since a division by a constant, which the length was, is compiled to a product with its reciprocal.

    Attributes:
      warmup: steps of warm-up. per_warmup_step: 1 over it. per_decay_step: 1 over the steps after it; float32 scalars all.
    """

    warmup: jax.typing.ArrayLike
    per_warmup_step: jax.typing.ArrayLike
    per_decay_step: jax.typing.ArrayLike

    @classmethod
    def of(cls, spec: OptimizerConfig, total_steps: int) -> Horizon:
        """That of a run with these options and this many steps."""
        total_steps = spec.schedule_steps or total_steps
        warmup, one = warmup_of(spec, total_steps), np.float32(1)
        return cls(np.float32(warmup), one / np.float32(max(warmup, 1)), one / np.float32(max(total_steps - warmup, 1)))


def make_schedule(spec: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate of each optimizer step: linear warm-up to the peak, then constant, linear or cosine decay.

    With `w` warm-up steps and `T` steps in all, step `t = 0, 1, ...` has

        peak * (t + 1) / w                                          for t < w
        peak * (f + (1 - f) * shape(p)),  p = (t - w) / (T - w)     after, where f is `final_ratio`

    `shape(p)` is `1 - p` (linear) or `(1 + cos(pi p)) / 2` (cosine). The first step already learns. T is `schedule_steps` where
    that is set; after it p stays 1. A warm-up longer than T is cut, see `warmup_of`.

    Args:
      spec: the optimizer's options.
      total_steps: optimizer steps of the whole run, at least 1.

    Returns:
      A function of the step count (int scalar, traced or not) that returns a float32 scalar.

    Raises:
      UserError: a run without steps.
    """
    if total_steps < 1:
        raise UserError(f"train.steps: a run has at least one step, got {total_steps}")
    total_steps = spec.schedule_steps or total_steps
    warmup = warmup_of(spec, total_steps)

    def learning_rate(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count, jnp.float32)
        return _rate(spec, step < warmup, (step + 1.0) / max(warmup, 1), (step - warmup) / max(total_steps - warmup, 1))

    return learning_rate


def _rate(spec: OptimizerConfig, rising: jax.Array, rise: jax.Array, progress: jax.Array) -> jax.Array:
    """The learning rate of a step of the warm-up (`rising`) or after it, where both are told as fractions."""
    final, progress = spec.final_ratio or 0.0, jnp.clip(progress, 0.0, 1.0)
    if spec.schedule == "constant":
        decay = jnp.ones_like(progress)
    elif spec.schedule == "linear":
        decay = 1.0 - (1.0 - final) * progress
    else:
        decay = final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return spec.learning_rate * jnp.where(rising, rise, decay)


def _scale_by_rate(spec: OptimizerConfig, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """Updates times minus the learning rate, of a schedule of `total_steps` or of the `horizon` given with the updates."""
    fixed = make_schedule(spec, total_steps)

    def init(params: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, *, horizon: Horizon | None = None, **_: Any) -> tuple[Any, Any]:
        if horizon is None:
            rate = fixed(state.count)
        else:
            step = jnp.asarray(state.count, jnp.float32)
            rise, progress = (step + 1.0) * horizon.per_warmup_step, (step - horizon.warmup) * horizon.per_decay_step
            rate = _rate(spec, step < horizon.warmup, rise, progress)
        scaled = jax.tree.map(lambda u: jnp.array(-1 * rate, dtype=u.dtype) * u, updates)
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def decay_mask(params: Any) -> Any:
    """A pytree of bools like `params`: what the table of weights says of weight decay (norms are pulled towards one, not zero).

    In a tree that is not a model's, what is called a norm is not decayed, see `align_jax.models.weights.decays`.
    """

    def decayed(path: tuple, _: Any) -> bool:
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        # An nnx variable has the path of its place.
        return decays(tuple(names[:-1] if names[-1:] == ["value"] else names))

    return jax.tree_util.tree_map_with_path(decayed, params)


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
    after global-norm clipping, and norms are not decayed. Moments are float32 unless `moment_dtype` says otherwise.

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
        parts.append(optax.add_decayed_weights(spec.weight_decay, mask=decay_mask))
    parts.append(_scale_by_rate(spec, total_steps))
    return _in_float32(optax.chain(*parts))


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
