"""One table of all losses: arguments with a leading axis of 8, the function, and its slow reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from align_jax import losses
from tests.losses import reference
from tests.losses.pair_cases import pair_cases

GROUPS, RESPONSES, BELIEFS = 8, 5, 4


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    name: str
    loss: Callable  # arrays -> [8]
    slow: Callable  # arrays -> float64 [8]
    arrays: tuple[np.ndarray, ...]
    by: tuple[int, ...]  # which arrays are differentiated
    blind: tuple[int, ...] = ()  # which of them get no gradient: data, not predictions


def set_arrays() -> tuple[np.ndarray, ...]:
    """Policy, reference, scores and mask; a padded, a single, an empty and an equal group are among them."""
    rng = np.random.default_rng(0)
    policy, ref = rng.normal(-20, 6, (2, GROUPS, RESPONSES)).astype(np.float32)
    scores = rng.uniform(0, 10, (GROUPS, RESPONSES)).astype(np.float32)
    mask = np.ones((GROUPS, RESPONSES), bool)
    mask[1, 3:] = mask[2, 0] = mask[3, 1:] = mask[4] = mask[6, 1:4] = False
    scores[5] = 0.1
    return policy, ref, scores, mask


def level_arrays() -> tuple[np.ndarray, ...]:
    policy, ref, _, mask = set_arrays()
    levels = np.random.default_rng(1).integers(0, 4, (GROUPS, RESPONSES)).astype(np.int32)
    levels[5] = 2
    levels[0] = [3, 0, 1, 3, 1]
    return policy, ref, levels, mask


def pair_arrays() -> tuple[np.ndarray, ...]:
    return tuple(np.random.default_rng(2).normal(-20, 4, (4, GROUPS)).astype(np.float32))


def belief_arrays() -> tuple[np.ndarray, ...]:
    """Belief log-probs and targets; some targets are 0, one row puts everything on one belief."""
    rng = np.random.default_rng(3)
    logps = np.log(rng.dirichlet(np.ones(BELIEFS + 1), GROUPS)[:, :BELIEFS]).astype(np.float32)
    targets = rng.dirichlet(np.ones(BELIEFS), GROUPS)
    targets[0] = [0, 1, 0, 0]
    targets[1:3, 3] = 0
    return logps, (targets / targets.sum(1, keepdims=True)).astype(np.float32)


def _case(name, loss, slow, arrays, by, blind=(), /, **options) -> Case:
    slow_rows = functools.partial(reference.rows, slow, **options)
    return Case(name, functools.partial(loss, **options), slow_rows, tuple(arrays), by, blind)


def _kto_case() -> Case:
    policy, ref, *_ = pair_arrays()
    arrays = (policy, ref, np.arange(GROUPS) % 3 > 0)
    options = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    return Case(
        "kto",
        lambda p, r, d: losses.kto_loss(p, r, d, 0.4, **options),
        functools.partial(reference.rows, reference.kto, kl=0.4, **options),
        arrays,
        (0, 1),
    )


def _masked(loss):
    return lambda logps, targets, mask, **options: loss(logps, targets, mask=mask, **options)


_masked_calibration = _masked(losses.belief_calibration_loss)


def _posterior_sum(beliefs, texts, values, mask):
    found = losses.belief_posterior(beliefs, texts, mask=mask)
    return (found * values).sum(-1)


DIVERGENCES = (
    ("belief_reverse_kl", losses.belief_reverse_kl_loss, reference.reverse_kl),
    ("belief_jensen_shannon", losses.belief_jensen_shannon_loss, reference.jensen_shannon_divergence),
    ("belief_total_variation", losses.belief_total_variation_loss, reference.total_variation),
)


def _divergence_cases(beliefs, mask) -> list[Case]:
    """With the mask and without, renormalised and not; masked rows have targets that sum to less than 1."""
    return [
        case
        for name, loss, slow in DIVERGENCES
        for case in (
            _case(name, loss, slow, beliefs, (0, 1), (1,)),
            _case(f"{name}_masked", _masked(loss), slow, (*beliefs, mask), (0,)),
            _case(f"{name}_renormalized", _masked(loss), slow, (*beliefs, mask), (0,), renormalize=True),
        )
    ]


def _by_levels(rule, *more) -> tuple[Callable, Callable]:
    """Ordered levels from scores, and the slow way."""
    slow_rule = getattr(reference, rule.__name__)

    def loss(policy, ref, scores, mask, **options):
        return losses.ordered_mpo_loss(policy, ref, rule(scores, mask, *more), mask, **options)

    def slow(policy, ref, scores, mask, **options):
        return reference.ordered_mpo(policy, ref, slow_rule(scores, mask, *more), mask, **options)

    return loss, slow


def _tied_arrays() -> tuple[np.ndarray, ...]:
    policy, ref, scores, mask = set_arrays()
    return policy, ref, np.round(scores / 2), mask


def _cases() -> list[Case]:
    sets, pairs, beliefs = set_arrays(), pair_arrays(), belief_arrays()
    belief_mask = np.arange(BELIEFS) < np.array([4, 3, 4, 2, 4, 0, 3, 1])[:, None]
    statement, preference = pairs[0] / 10, np.abs(pairs[1])
    every = (0, 1, 2, 3)
    return [
        _case("mpo", losses.mpo_loss, reference.mpo, sets, (0, 1), beta=0.1),
        _case("wmpo", losses.mpo_loss, reference.mpo, sets, (0, 1, 2), (2,), beta=0.2, alpha=0.7),
        _case("wmpo_2", losses.mpo_loss, reference.mpo, sets, (0, 1), beta=0.2, alpha=0.1, power=2),
        _case("wmpo_half", losses.mpo_loss, reference.mpo, sets, (0, 1), beta=0.2, alpha=1.0, power=0.5),
        _case("wmpo_0", losses.mpo_loss, reference.mpo, sets, (0,), beta=0.2, alpha=1.0, power=0),
        _case("ordered", losses.ordered_mpo_loss, reference.ordered_mpo, level_arrays(), (0, 1), beta=0.2),
        *(
            _case(
                f"ordered_{name}",
                *_by_levels(rule, *more),
                arrays,
                (0, 1, 2),
                (2,),
                beta=0.2,
            )
            for name, rule, more, arrays in (
                ("range", losses.levels_by_range, (3,), sets),
                ("quantiles", losses.levels_by_quantiles, (3,), sets),
                ("quantiles_tied", losses.levels_by_quantiles, (2,), _tied_arrays()),
                ("thresholds", losses.levels_by_thresholds, ([2, 4],), _tied_arrays()),
                ("grades", losses.levels_of_grades, (None,), _tied_arrays()),
                ("grades_most", losses.levels_of_grades, (2,), _tied_arrays()),
            )
        ),
        _case("infonca", losses.infonca_loss, reference.infonca, sets, (0, 1, 2), (2,), beta=0.2, temperature=2.0),
        _case("nca", losses.nca_loss, reference.nca, sets, (0, 1, 2), (2,), beta=0.2, temperature=2.0),
        _case("dpo", losses.dpo_loss, reference.dpo, pairs, every, beta=0.3),
        _case("cdpo", losses.dpo_loss, reference.dpo, pairs, every, beta=0.3, label_smoothing=0.2),
        _case("robust", losses.robust_dpo_loss, reference.robust_dpo, pairs, every, beta=0.3, label_smoothing=0.2),
        _case("hinge", losses.hinge_loss, reference.hinge, pairs, every, beta=0.3),
        _case("ipo", losses.ipo_loss, reference.ipo, pairs, every, beta=0.3),
        _case("simpo", losses.simpo_loss, reference.simpo, [p / 10 for p in pairs[:2]], (0, 1), beta=2.0, gamma=0.5),
        *(_case(*positional, **options) for positional, options in pair_cases(pairs)),
        _kto_case(),
        _case("bradley_terry", losses.bradley_terry_loss, reference.bradley_terry, pairs[:2], (0, 1)),
        *(
            _case(name, loss, slow, (sets[0] / 5, *sets[2:]), (0, 1), (1,))
            for name, loss, slow in (
                ("bradley_terry_set", losses.bradley_terry_set_loss, reference.bradley_terry_set),
                ("bradley_terry_pairs", losses.bradley_terry_pairs_loss, reference.bradley_terry_pairs),
                ("score_center", losses.score_center_loss, reference.score_center),
            )
        ),
        _case("calibration", losses.belief_calibration_loss, reference.calibration, beliefs, (0,)),
        _case("calibration_masked", _masked_calibration, reference.calibration, (*beliefs, belief_mask), (0,)),
        _case(
            "calibration_renormalized",
            _masked_calibration,
            reference.calibration,
            (*beliefs, belief_mask),
            (0,),
            renormalize=True,
        ),
        _case(
            "belief_posterior",
            _posterior_sum,
            reference.posterior_sum,
            (beliefs[0], set_arrays()[0][:, :BELIEFS] / 3, beliefs[1], belief_mask),
            (0, 1, 2),
            (0, 1),
        ),
        *_divergence_cases(beliefs, belief_mask),
        _case(
            "gdpo_reverse_kl",
            functools.partial(losses.gdpo_loss, calibration=losses.belief_reverse_kl_loss),
            functools.partial(reference.gdpo, divergence=reference.reverse_kl),
            (*beliefs, statement, preference),
            (0, 2, 3),
            weights=(0.5, 2.0, 1.5),
        ),
        _case(
            "gdpo",
            losses.gdpo_loss,
            reference.gdpo,
            (*beliefs, statement, preference),
            (0, 2, 3),
            weights=(0.5, 2.0, 1.5),
        ),
        _case(
            "jensen_shannon",
            losses.jensen_shannon_distance,
            reference.jensen_shannon,
            (np.exp(beliefs[0]), np.where(beliefs[1] == 0, 0.1, beliefs[1]).astype(np.float32) * 3),
            (0, 1),
        ),
    ]


CASES = _cases()
