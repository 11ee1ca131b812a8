"""Schedule-free AdamW: an average of the iterates takes the place of a schedule that decays."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from align_jax.errors import UserError
from align_jax.training.decay import DECAYED, check_decay
from align_jax.training.schedules import SCHEDULES, Horizon, OptimizerConfig, check_options, rate_at

_LEAST_POWER = -37  # of ten, that float32 holds


@dataclasses.dataclass(frozen=True)
class ScheduleFree(OptimizerConfig):
    """Schedule-free AdamW (arXiv 2405.15682): AdamW whose iterates are averaged, with a warm-up and no decay.

    The weights of the state, of checkpoints, evaluations and exports are the average; gradients are taken elsewhere, see
    `averaged`. It takes a larger learning rate than AdamW, 1 to 10 times.

    Attributes:
      schedule: `constant`: there is no other.
      b1: how near to the average gradients are taken, in place of a first moment.
      b2: decay of the second moment per step.
      eps: added to the root of the second moment.
      weight_decay: times the learning rate.
      decayed: what decays: None is `matrices`, those of layers and the head; `embeddings`, these too; `all`, norms and
        biases as well. A run that began before this key goes on with `embeddings`.
      weight_power: an iterate's weight in the average is the largest learning rate so far to this power.
    """

    name: ClassVar[str] = "schedule_free"
    schedule: SCHEDULES = "constant"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decayed: DECAYED | None = None
    weight_power: float = 2.0

    def __post_init__(self):
        if self.schedule != "constant":
            raise UserError(
                f"optimizer.schedule: {self.schedule} does not go with optimizer.name: schedule_free, whose average takes "
                "the place of a decay; leave it out"
            )
        super().__post_init__()
        check_options(self, "b1", low=0, high=1, open_low=True, open_high=True)
        check_options(self, "b2", low=0, high=1, open_high=True)
        check_options(self, "eps", low=0, open_low=True)
        check_options(self, "weight_decay", "weight_power", low=0)
        least = self.learning_rate / max(self.warmup_steps or 1, 1)
        if least > 0 and self.weight_power * math.log10(least) < _LEAST_POWER:
            raise UserError(
                f"optimizer.weight_power: {self.weight_power:g}: the first learning rate, {least:.3g}, to this power is 0 in "
                "float32, and the average has no weight; give a smaller power (2 is the paper's)"
            )
        check_decay(self)

    def rescale(self) -> optax.GradientTransformation:
        return optax.scale_by_rms(self.b2, self.eps, eps_in_sqrt=False, bias_correction=True)


class AveragedState(NamedTuple):
    """What `averaged` carries from step to step.

    Attributes:
      count: int32 scalar, steps made. b1: of the point where gradients are taken.
      largest_rate: learning rate so far. weight: of the average, the sum of those of its iterates.
      inner: the state of the direction. z: the iterates that are averaged, in float32.
    """

    count: jax.Array
    b1: jax.Array
    largest_rate: jax.Array
    weight: jax.Array
    inner: Any
    z: Any


def averaged(
    direction: optax.GradientTransformation, spec: ScheduleFree, total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Iterates and their average, where the average is what optax calls `params`.

        y = (1 - b1) z + b1 x                   where the gradient g is taken, see `gradient_point`
        z <- z - lr (direction(g) + decay y)
        x <- x + c (z - x),  c = max lr^p / sum of max lr^p over the steps so far

    `optax.contrib.schedule_free` keeps y and z and leaves it to others to compute x of them. Here the weights are x, so that
    whatever reads weights reads the average; a step computes y, which takes the memory of one more copy of the weights.

    Args:
      direction: gradient to update at y, weight decay included, before the learning rate.
      spec: `b1`, `weight_power` and the warm-up. total_steps: of the run, for the warm-up.

    Source: arXiv 2405.15682, Eq. 3 to 5 and Algorithm 1.
    """
    rate_of = rate_at(spec, total_steps)

    def init(params: Any) -> AveragedState:
        zero = jnp.zeros([], jnp.float32)
        # Copies: weights and state are donated both.
        z = jax.tree.map(jnp.copy, params)
        return AveragedState(jnp.zeros([], jnp.int32), jnp.float32(spec.b1), zero, zero, direction.init(params), z)

    def update(grads: Any, state: AveragedState, params: Any, *, horizon: Horizon | None = None, **_: Any) -> tuple[Any, Any]:
        rate = rate_of(state.count, horizon)
        y = _between(params, state.z, state.b1)
        towards, inner = direction.update(grads, state.inner, y)
        z = jax.tree.map(lambda at, d: at - rate * d, state.z, towards)
        largest = jnp.maximum(state.largest_rate, rate)
        weight = state.weight + largest**spec.weight_power
        share = largest**spec.weight_power / weight
        updates = jax.tree.map(lambda x, at: share * (at - x), params, z)
        return updates, AveragedState(optax.safe_increment(state.count), state.b1, largest, weight, inner, z)

    return optax.GradientTransformationExtraArgs(init, update)


def gradient_point(params: Any, opt_state: Any) -> Any:
    """The weights at which a step's gradient is taken: the weights, or y of `averaged` in their types.

    Args:
      params: what is trained. opt_state: of an optimizer that `make_optimizer` made.
    """
    if not isinstance(opt_state, AveragedState):
        return params
    y = _between(jax.tree.map(lambda x: x.astype(jnp.float32), params), opt_state.z, opt_state.b1)
    return jax.tree.map(lambda at, x: at.astype(x.dtype), y, params)


def _between(x: Any, z: Any, b1: jax.Array) -> Any:
    return jax.tree.map(lambda x, z: (1 - b1) * z + b1 * x, x, z)
