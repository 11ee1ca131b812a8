"""Metrics that several objectives and the evaluation share; each is a (sum, weight) a group."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.objectives.base import Metrics, weighted


def set_metrics(logps: jax.Array, rewards: jax.Array, scores: jax.Array, mask: jax.Array, beta: float) -> Metrics:
    """Rewards and log-probs of the accepted (`S_i > mean`) and the rejected responses of each group, TRL's names.

    Args:
      logps, rewards: float32 `[G, K]`, log-probs and implicit rewards `beta * r`.
      scores: `[G, K]`. mask: bool `[G, K]`. beta: the rewards' scale.
    """
    accepted, rejected, contrast = losses.partition(scores, mask)
    clean = jnp.where(mask, logps, 0.0)
    return {
        **reward_metrics(rewards, scores, mask, beta * logps),
        "logps/chosen": weighted(_masked_mean(clean, accepted & contrast[:, None]), contrast),
        "logps/rejected": weighted(_masked_mean(clean, rejected & contrast[:, None]), contrast),
    }


def reward_metrics(rewards: jax.Array, scores: jax.Array, mask: jax.Array, sizes: jax.Array) -> Metrics:
    """Rewards of the accepted (`S_i > mean`) and the rejected responses of each group, TRL's names.

    `rewards/accuracies` is over all accepted-rejected pairs: the fraction whose accepted response has the larger reward,
    ties counting half.

    Args:
      rewards: float32 `[G, K]`.
      scores: `[G, K]`. mask: bool `[G, K]`.
      sizes: what the rewards are a difference of, `[G, K]`: how much they round, see `wins`.
    """
    accepted, rejected, contrast = losses.partition(scores, mask)
    accepted, rejected = accepted & contrast[:, None], rejected & contrast[:, None]
    clean, clean_sizes = jnp.where(mask, rewards, 0.0), jnp.where(mask, sizes, 0.0)
    pairs = accepted[:, :, None] & rejected[:, None, :]
    right = wins(clean[:, :, None], clean[:, None, :], clean_sizes[:, :, None], clean_sizes[:, None, :])
    chosen = _masked_mean(clean, accepted)
    lost = _masked_mean(clean, rejected)
    return {
        "rewards/chosen": weighted(chosen, contrast),
        "rewards/rejected": weighted(lost, contrast),
        "rewards/margins": weighted(chosen - lost, contrast),
        "rewards/accuracies": (jnp.sum(jnp.where(pairs, right, 0.0), axis=(-2, -1)), _count(pairs)),
    }


def wins(reward: jax.Array, other: jax.Array, size: jax.Array, other_size: jax.Array) -> jax.Array:
    """1 where a reward is above another, 0 where it is below, 1/2 where they differ by no more than rounding.

    At the first step policy and reference agree, and every difference of rewards is rounding of the log-probs: without the
    tie the accuracy would be noise that changes with the devices.

    Args:
      reward, other: of any shape. size, other_size: what each is a small difference of, in its unit: `beta * log pi(y|x)` for
        `beta * log-ratio`.
    """
    rounding = 2e-7 * (jnp.abs(size) + jnp.abs(other_size))
    return jnp.where(jnp.abs(reward - other) <= rounding, 0.5, (reward > other).astype(jnp.float32))


def pair_metrics(logps: jax.Array, rewards: jax.Array, sizes: jax.Array, exists: jax.Array) -> Metrics:
    """Rewards of the chosen (slot 0) and the rejected (slot 1) response of each pair, TRL's names.

    Args:
      logps, rewards: float32 `[G, 2]`. sizes: `[G, 2]`, see `wins`. exists: bool `[G]`, False for a padding group.
    """
    return {
        "rewards/chosen": weighted(rewards[:, 0], exists),
        "rewards/rejected": weighted(rewards[:, 1], exists),
        "rewards/margins": weighted(rewards[:, 0] - rewards[:, 1], exists),
        "rewards/accuracies": weighted(wins(rewards[:, 0], rewards[:, 1], sizes[:, 0], sizes[:, 1]), exists),
        "logps/chosen": weighted(logps[:, 0], exists),
        "logps/rejected": weighted(logps[:, 1], exists),
    }


def belief_metrics(belief_logps: jax.Array, target_probs: jax.Array, exists: jax.Array) -> Metrics:
    """Distance of the predicted belief distribution to the target, and the probability that is on beliefs at all.

    `beliefs/js_distance` is of `pi(b|x)` renormalised over the beliefs; `beliefs/mass` is `sum_b pi(b|x)`, what the
    GDPO authors log as `CLS_Sum`.

    Args:
      belief_logps: `[G, N]`, -inf where the prompt has no such belief. exists: bool `[G]`.
      target_probs: `[G, N]`; where nobody knows them, NaN, there is no distance.
    """
    safe = jnp.where(exists[:, None], belief_logps, 0.0)
    predicted = jax.nn.softmax(safe, axis=-1)
    known = exists & jnp.all(jnp.isfinite(target_probs), axis=-1)
    targets = jnp.where(known[:, None], target_probs, 1.0)
    return {
        "beliefs/js_distance": weighted(losses.jensen_shannon_distance(predicted, targets), known),
        "beliefs/mass": weighted(jnp.exp(jax.nn.logsumexp(safe, axis=-1)), exists),
    }


def latent_metrics(posterior: jax.Array, beliefs: jax.Array, texts: jax.Array, chosen: jax.Array, exists: jax.Array) -> Metrics:
    """What latent beliefs are taken to be.

    `latent/entropy` is of the posterior, in nats. `latent/share/B` is the share of belief B: one that goes to 1 where people
    differ is a collapse. `latent/agreement` is how often the most probable belief is the labelled one, where rows have labels.
    `latent/evidence` is `log sum_b pi(b|x) pi(y|b,x)` of the accepted text, which expectation-maximization raises.

    Args:
      posterior, beliefs, texts: `[G, N]`, q, and the policy's log-probs of the statements (-inf where there is none) and of the
        accepted text behind each. chosen: int `[G]`, -1 where nobody says it. exists: bool `[G]`.
    """
    log = jnp.log(jnp.where(posterior > 0, posterior, 1.0))
    joint = jnp.where(exists[:, None], beliefs + texts, 0.0)
    there = jnp.isfinite(beliefs) & exists[:, None]
    right = (jnp.argmax(posterior, axis=-1) == chosen).astype(jnp.float32)
    shares = {f"latent/share/{b}": weighted(posterior[:, b], there[:, b]) for b in range(posterior.shape[1])}
    return {
        "latent/entropy": weighted(-jnp.sum(posterior * log, axis=-1), exists),
        "latent/agreement": weighted(right, exists & (chosen >= 0)),
        "latent/evidence": weighted(jax.nn.logsumexp(joint, axis=-1), exists),
        **shares,
    }


def split_by_majority(metrics: Metrics, majority: jax.Array) -> Metrics:
    """Accuracy and margin once more for groups whose chosen belief is the most frequent one, and for the others.

    Args:
      metrics: what `pair_metrics` or `set_metrics` returned. majority: bool `[G]`.
    """
    split = {}
    for name in ("rewards/accuracies", "rewards/margins"):
        total, weight = metrics[name]
        for suffix, here in (("majority", majority), ("minority", ~majority)):
            split[f"{name}/{suffix}"] = (jnp.where(here, total, 0.0), jnp.where(here, weight, 0.0))
    return split


def _masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, values, 0.0), axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)


def _count(flags: jax.Array) -> jax.Array:
    return jnp.sum(flags, axis=(-2, -1)).astype(jnp.float32)
