"""What every optimizer has: the learning rate and its schedule, clipping, and which weights decay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from align_jax.errors import UserError, check_fields

SCHEDULES = Literal["constant", "linear", "cosine"]


def check_options(spec: Any, *names: str, **bounds: Any) -> None:
    """`check_fields` of the section `optimizer`."""
    check_fields("optimizer", spec, *names, **bounds)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What every optimizer has: the learning rate, its schedule and gradient clipping.

    Attributes:
      name: the value of `optimizer.name`.
      learning_rate: the peak; where a config gives none, what is usual for its objective: 2e-5 for `sft`, 1e-5 for `reward`,
        5e-6 for `orpo`, 1e-6 for all others.
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
        check_options(self, "learning_rate", "clip_norm", low=0, open_low=True)
        check_options(self, "warmup_steps", low=0)
        check_options(self, "warmup_ratio", low=0, high=1, open_high=True)
        check_options(self, "final_ratio", low=0, high=1)
        check_options(self, "schedule_steps", low=1, hint="or null for the steps of the run")
        if self.schedule not in get_args(SCHEDULES):
            raise UserError(f"optimizer.schedule: {self.schedule!r} is not one of {', '.join(get_args(SCHEDULES))}")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise UserError("optimizer.warmup_ratio: give warmup_steps or warmup_ratio, not both")
        if self.schedule == "constant" and self.final_ratio is not None:
            raise UserError("optimizer.final_ratio: the constant schedule does not use it; remove it")
        if self.schedule == "constant" and self.schedule_steps is not None and not (self.warmup_steps or self.warmup_ratio):
            raise UserError("optimizer.schedule_steps: the constant schedule without warm-up does not use it; remove it")


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


def rate_at(spec: OptimizerConfig, total_steps: int) -> Callable[[jax.Array, Horizon | None], jax.Array]:
    """(step count, horizon) -> its learning rate, of a schedule of `total_steps` or, where one is given, of the horizon's."""
    fixed = make_schedule(spec, total_steps)

    def rate(count: jax.Array, horizon: Horizon | None) -> jax.Array:
        if horizon is None:
            return fixed(count)
        step = jnp.asarray(count, jnp.float32)
        rise, progress = (step + 1.0) * horizon.per_warmup_step, (step - horizon.warmup) * horizon.per_decay_step
        return _rate(spec, step < horizon.warmup, rise, progress)

    return rate


def scale_by_rate(spec: OptimizerConfig, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """Updates times minus the learning rate, of a schedule of `total_steps` or of the `horizon` given with the updates."""
    rate_of = rate_at(spec, total_steps)

    def init(params: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, *, horizon: Horizon | None = None, **_: Any) -> tuple[Any, Any]:
        rate = rate_of(state.count, horizon)
        scaled = jax.tree.map(lambda u: jnp.array(-1 * rate, dtype=u.dtype) * u, updates)
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
