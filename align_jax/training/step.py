"""One training step: pure, donated, readable in one screen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from align_jax.batch import GroupBatch, GroupLabels
from align_jax.models import ModelConfig
from align_jax.models.adapter import KEY
from align_jax.models.experts import Load, balance_loss, busiest
from align_jax.objectives import Metrics, Objective
from align_jax.objectives.signature_metrics import with_spread
from align_jax.parallel.mesh import replicated
from align_jax.parallel.tpu_flags import compiler_options
from align_jax.scoring.scorer import Scorer
from align_jax.training.live import LiveReference, with_live_reference
from align_jax.training.optim import Horizon, apply_updates, gradient_point
from align_jax.training.state import TrainState, merge
from align_jax.training.tokens import token_counts


def train_step(
    state: TrainState,
    batch: GroupBatch,
    *,
    scorer: Scorer,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    horizon: Horizon | None = None,
    live: LiveReference | None = None,
    skip: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Gradients of all microbatches, one update.

    Microbatches are added as sums and weights, so the gradient is that of the whole batch's weighted mean loss,
    `grad(sum_g loss_g w_g) / sum_g w_g`, however the batch is cut.

    Args:
      state: the state; `trainable` is differentiated and updated, `frozen` comes back as it is.
      batch: microbatches on a leading axis A of every array.
      seed: of the rounding of bfloat16 parameters, see `apply_updates`.
      horizon: the run's length for the schedule; None is the one that the optimizer was made for.
      live: where the reference's log-probs are those of the state's own reference, and how that moves; None: `ref_logps` come
        with the batch, where the objective needs any.
      skip: a loss or a gradient that is not finite leaves weights and optimizer (and so its schedule) as they are.

    Of a mixture of experts the loss is that and `scorer.router_aux_weight` times the load-balancing loss of a microbatch, in
    the mean over microbatches.

    Returns:
      The next state, and the metrics as scalars: `loss`, `grad_norm`, what the objective reports, and the counts of
      `token_counts`.
    """
    if live is not None:
        batch = with_live_reference(state.reference_weights, batch, scorer)
    here = gradient_point(state.trainable, state.opt_state)
    statistic = whole_batch_statistic(merge(here, state.frozen), batch, scorer, objective)
    drop = dropout_keys(scorer.config, seed, state.step)

    def loss(trainable, micro):
        found, labels = scorer.for_objective(drop(merge(trainable, state.frozen), micro), micro, objective.needs_collisions)
        metrics = _metrics(found.values, labels, objective, statistic)
        sums = {name: (jnp.sum(total), jnp.sum(weight)) for name, (total, weight) in metrics.items()}
        if found.load is not None:
            sums = _balanced(sums, found.load, scorer.router_aux_weight)
        return sums["loss"][0], sums

    def grad(trainable, micro):
        grads, sums = jax.grad(loss, has_aux=True)(trainable, micro)
        # In float32 whatever the weights are: sums of many microbatches lose what bfloat16 has no digits for.
        return jax.tree.map(lambda g: g.astype(jnp.float32), grads), sums

    def add(carry, micro):
        return jax.tree.map(jnp.add, carry, grad(here, micro)), None

    grads, sums = _over_microbatches(add, grad, here, batch)
    weight = jnp.maximum(sums["loss"][1], jnp.finfo(jnp.float32).tiny)
    grads = jax.tree.map(lambda g: g / weight, grads)
    length = {} if horizon is None else {"horizon": horizon}
    measured = lambda: {**means(sums), "grad_norm": optax.tree.norm(grads), **token_counts(batch)}  # noqa: E731
    update = optax.with_extra_args_support(optimizer).update

    def updated():
        updates, opt_state = update(grads, state.opt_state, state.trainable, **length)
        return apply_updates(state.trainable, updates, seed, state.step), opt_state

    if skip:
        # A select of results instead needs the old and the new moments at one time.
        metrics = measured()
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        trainable, opt_state = jax.lax.cond(good, updated, lambda: (state.trainable, state.opt_state))
    else:
        trainable, opt_state = updated()
        metrics = measured()
    reference = state.reference if live is None else live.moved(state.reference, trainable, state.step + 1, seed)
    return TrainState(state.step + 1, trainable, state.frozen, opt_state, reference), metrics


def dropout_keys(config: ModelConfig, seed: int, step: jax.Array) -> Callable[[dict, GroupBatch], dict]:
    """(weights, microbatch) -> weights with the keys of this step's dropout; as they are where there is none.

    The key of a microbatch is that of the rows in it, and each chunk of `model.rows_per_chunk` has one of its own
    (`Decoder.of_part`), so that masks depend on how rows are packed and cut.
    """
    if config.lora is None or not config.lora.dropout:
        return lambda weights, micro: weights
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0x10A), step)

    def with_keys(weights, micro):
        rows = (micro.rows.astype(jnp.uint32) + 1) * jnp.uint32(2654435761)  # scattered, so that other rows have other sums
        own = jax.random.fold_in(key, jnp.sum(rows ^ (rows >> 15), dtype=jnp.uint32))
        keys = jax.random.key_data(jax.random.split(own, config.layers))
        return {**weights, "layers": {**weights["layers"], KEY: keys}}

    return with_keys


def means(sums: dict[str, tuple[jax.Array, jax.Array]]) -> dict[str, jax.Array]:
    """Each metric's sum over its weight; 0/0, nothing to average, is NaN for all but the loss, which is then 0."""
    safe = lambda name, s, w: jnp.where(w > 0, s / jnp.where(w > 0, w, 1), 0.0 if name == "loss" else jnp.nan)  # noqa: E731
    found = {name: safe(name, total, weight) for name, (total, weight) in sums.items()}
    return with_spread(found, lambda variance: jnp.sqrt(jnp.maximum(variance, 0.0)))


def whole_batch_statistic(params: dict, batch: GroupBatch, scorer: Scorer, objective: Objective) -> jax.Array | None:
    """The objective's batch statistic over all microbatches, by a forward pass of its own where there are several."""
    count = batch.tokens.shape[0]
    if type(objective).statistics is Objective.statistics or count == 1:
        return None

    def own(micro):
        found, labels = scorer.for_objective(params, micro, objective.needs_collisions, counted=False)
        return objective.statistics(found.values, labels)

    def add(carry, micro):
        return jax.tree.map(jnp.add, carry, own(micro)), None

    shapes = jax.eval_shape(own, jax.tree.map(lambda x: x[0], batch))
    if shapes is None:
        return None
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (total, weight), _ = jax.lax.scan(add, zeros, batch)
    return jax.lax.stop_gradient(total / jnp.maximum(weight, 1))


def _metrics(logps: jax.Array, labels: GroupLabels, objective: Objective, statistic: jax.Array | None) -> Metrics:
    """The objective's metrics, under the whole batch's statistic or, where there is none, that of these groups."""
    if statistic is None:
        own = objective.statistics(logps, labels)
        statistic = None if own is None else own[0] / jnp.maximum(own[1], 1)
    return objective(logps, labels, statistic)


def _balanced(sums: dict, load: Load, weight: float) -> dict:
    """Sums with the balance of a mixture's experts: a metric of a microbatch, and a part of the loss where it has a weight."""
    loss, count = sums["loss"]
    aux = balance_loss(load)
    found = {name: (jax.lax.stop_gradient(x) * count, count) for name, x in (("aux_loss", aux), ("busiest", busiest(load)))}
    sums = {**sums, **{f"router/{name}": entry for name, entry in found.items()}}
    return {**sums, "loss": (loss + weight * aux * count, count)} if weight else sums


def _over_microbatches(add, grad: Callable, trainable: dict, batch: GroupBatch):
    first = jax.tree.map(lambda x: x[0], batch)
    if batch.tokens.shape[0] == 1:
        return grad(trainable, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, trainable, first))
    return jax.lax.scan(add, zeros, batch)[0]


@dataclasses.dataclass(frozen=True)
class JittedStep:
    """`train_step` for a mesh: `(state, batch) -> (state, metrics)`.

    All of the state is donated but its frozen part, which others may hold too (a reference is often the frozen weights).

    Attributes:
      program: (state without its frozen part, frozen part, horizon, batch) -> (state without its frozen part, metrics).
      horizon: the run's length for the schedule; None is the one that the optimizer was made for.
    """

    program: Callable
    horizon: Horizon | None = None

    def __call__(self, state: TrainState, batch: GroupBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        after, metrics = self.program(*self._parts(state), batch)
        return dataclasses.replace(after, frozen=state.frozen), metrics

    def lower(self, state: TrainState, batch: GroupBatch) -> Any:
        """The program lowered for these arrays, or shapes with shardings."""
        return self.program.lower(*self._parts(state), batch)

    def compiled(self, state: TrainState, batch: GroupBatch) -> JittedStep:
        """The step compiled for these shapes: its `program` is a `jax.stages.Compiled`, and it takes no others."""
        return dataclasses.replace(self, program=self.lower(state, batch).compile())

    def _parts(self, state: TrainState) -> tuple[TrainState, dict, Horizon | None]:
        return dataclasses.replace(state, frozen={}), state.frozen, self.horizon


def compile_step(
    mesh: Mesh,
    shardings: TrainState,
    scorer: Scorer,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    horizon: Horizon | None = None,
    live: LiveReference | None = None,
    skip: bool = False,
) -> JittedStep:
    """`train_step` jitted for a mesh: the state is donated, but for its frozen part, and comes back where it was.

    Args:
      horizon: the run's length for the schedule, an input of the program; None compiles the optimizer's own into it.
      live, skip: as in `train_step`.
    """

    def train_step_in_parts(state, frozen, horizon, batch):
        whole = dataclasses.replace(state, frozen=frozen)
        how = {"scorer": scorer, "objective": objective, "optimizer": optimizer, "seed": seed}
        how |= {"horizon": horizon, "live": live, "skip": skip}
        after, metrics = train_step(whole, batch, **how)
        return dataclasses.replace(after, frozen={}), metrics

    where = dataclasses.replace(shardings, frozen={})
    program = jax.jit(
        train_step_in_parts,
        donate_argnums=0,
        out_shardings=(where, replicated(mesh)),
        compiler_options=compiler_options(mesh),
    )
    return JittedStep(program, None if horizon is None else jax.device_put(horizon, replicated(mesh)))


def group_metrics(logps: jax.Array, labels: GroupLabels, objective: Objective) -> Metrics:
    """What the objective reports of scored groups, without an update: name -> (sums `[G]`, weights `[G]`)."""
    return _metrics(logps, labels, objective, None)
