"""Wrong numbers, shapes and dtypes raise a ValueError that holds the offending value."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import losses

SET = (np.zeros((2, 3)), np.zeros((2, 3)), np.arange(6.0).reshape(2, 3), np.ones((2, 3), bool))
LEVELS = (SET[0], SET[1], np.zeros((2, 3), int), SET[3])
PAIR = tuple(np.zeros((4, 2)))
BELIEF = (np.log(np.full((2, 3), 1 / 3)), np.full((2, 3), 1 / 3))
GDPO = (*BELIEF, np.zeros(2), np.zeros(2))
KTO = (np.zeros(2), np.zeros(2), np.ones(2, bool), 0.0)
LENGTHY, PARTS = (*PAIR, np.ones(2), np.ones(2)), tuple(np.zeros((4, 2, 2)))
ANCHORED = (losses.apo_zero_loss, losses.apo_down_loss, losses.bco_pair_loss, losses.sppo_hard_loss, losses.nca_pair_loss)
NAN, INF = float("nan"), float("inf")


def _calls(loss, arrays, bad: dict[str, tuple], **good):
    return [(loss, arrays, {**good, key: value}, value) for key, values in bad.items() for value in values]


NOT_POSITIVE = (0, -0.1, NAN, INF, np.float32(-2))
NEGATIVE = (-0.1, NAN, -1)
SMOOTHING = (-0.1, 0.5, 0.7, NAN)
NUMBERS = [
    *_calls(losses.mpo_loss, SET, {"alpha": NEGATIVE, "power": NEGATIVE}, beta=0.1),
    *_calls(losses.dpo_loss, PAIR, {"label_smoothing": SMOOTHING}, beta=0.1),
    *_calls(losses.robust_dpo_loss, PAIR, {"label_smoothing": SMOOTHING}, beta=0.1),
    *_calls(losses.simpo_loss, PAIR[:2], {"gamma": NEGATIVE}, beta=0.1),
    *_calls(losses.kto_loss, KTO, {"desirable_weight": NEGATIVE, "undesirable_weight": NEGATIVE}, beta=0.1),
    *_calls(losses.infonca_loss, SET, {"temperature": NOT_POSITIVE}, beta=0.1),
    *_calls(losses.nca_loss, SET, {"temperature": NOT_POSITIVE}, beta=0.1),
    *_calls(losses.mpo_loss, SET, {"beta": NOT_POSITIVE}),
    *_calls(losses.ordered_mpo_loss, LEVELS, {"beta": NOT_POSITIVE}),
    *_calls(losses.infonca_loss, SET, {"beta": NOT_POSITIVE}, temperature=1.0),
    *_calls(losses.nca_loss, SET, {"beta": NOT_POSITIVE}, temperature=1.0),
    *_calls(losses.dpo_loss, PAIR, {"beta": NOT_POSITIVE}),
    *_calls(losses.robust_dpo_loss, PAIR, {"beta": NOT_POSITIVE}),
    *_calls(losses.hinge_loss, PAIR, {"beta": NOT_POSITIVE}),
    *_calls(losses.ipo_loss, PAIR, {"beta": NOT_POSITIVE}),
    *_calls(losses.simpo_loss, PAIR[:2], {"beta": NOT_POSITIVE}, gamma=0.0),
    *_calls(losses.kto_loss, KTO, {"beta": NOT_POSITIVE}),
    *(call for loss in ANCHORED for call in _calls(loss, PAIR, {"beta": NOT_POSITIVE})),
    *_calls(losses.exo_pair_loss, PAIR, {"label_smoothing": (0, *SMOOTHING)}, beta=0.1),
    *_calls(losses.discopop_loss, PAIR, {"tau": (0, 1.5, NAN)}, beta=0.1),
    *_calls(losses.f_dpo_loss, PAIR, {"alpha": (-0.1, 1.5, NAN), "label_smoothing": SMOOTHING}, beta=0.1, divergence="alpha"),
    *_calls(losses.f_dpo_loss, PAIR, {"divergence": ("kl",)}, beta=0.1),
    *_calls(losses.r_dpo_loss, LENGTHY, {"alpha": NEGATIVE}, beta=0.1),
    *_calls(losses.ld_dpo_loss, PARTS, {"alpha": (-0.1, 1.5, NAN)}, beta=0.1),
    *_calls(losses.dpo_positive_loss, PAIR, {"penalty": NEGATIVE}, beta=0.1),
    *_calls(losses.cpo_loss, PAIR[:3], {"label_smoothing": SMOOTHING, "sft_weight": NEGATIVE}, beta=0.1),
    *_calls(losses.orpo_loss, PAIR[:2], {"sft_weight": NEGATIVE}, beta=0.1),
    *_calls(losses.aot_loss, PAIR, {"label_smoothing": SMOOTHING}, beta=0.1),
]


def test_numbers_out_of_range_are_named():
    for loss, arrays, options, value in NUMBERS:
        name = next(key for key, given in options.items() if given is value)
        with pytest.raises(ValueError, match=name) as error:
            loss(*arrays, **options)
        assert repr(value) in str(error.value), (loss, options)


def test_wrong_weights_are_named():
    for weights, said in (((1, 1), r"\(1, 1\)"), ((1, -2, 1), "belief statement weight.*-2"), ((1, 1, NAN), "nan")):
        with pytest.raises(ValueError, match=said):
            losses.gdpo_loss(*GDPO, weights=weights)


def test_as_many_preference_losses_as_beliefs():
    for count in (1, 3):
        with pytest.raises(ValueError, match=r"must have one B, got belief_logps \(2, 3\)"):
            losses.gdpo_loss(*BELIEF, np.zeros(count), np.zeros(count))


def test_one_threshold_makes_two_levels():
    scores = np.array([[9.0, 1.0]])
    assert losses.levels_by_thresholds(scores, np.ones((1, 2), bool), [3]).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="at least 2 levels, got 1"):
        losses.levels_by_thresholds(scores, np.ones((1, 2), bool), [])


SHAPES = [
    (losses.mpo_loss, SET, {"beta": 0.1}),
    (losses.ordered_mpo_loss, LEVELS, {"beta": 0.1}),
    (losses.infonca_loss, SET, {"beta": 0.1, "temperature": 1.0}),
    (losses.nca_loss, SET, {"beta": 0.1, "temperature": 1.0}),
    (losses.bradley_terry_set_loss, SET[1:], {}),
    (losses.bradley_terry_pairs_loss, SET[1:], {}),
    (losses.score_center_loss, SET[1:], {}),
    (losses.partition, SET[2:], {}),
    (losses.dpo_loss, PAIR, {"beta": 0.1}),
    (losses.robust_dpo_loss, PAIR, {"beta": 0.1}),
    (losses.hinge_loss, PAIR, {"beta": 0.1}),
    (losses.ipo_loss, PAIR, {"beta": 0.1}),
    (losses.simpo_loss, PAIR[:2], {"beta": 0.1, "gamma": 0.0}),
    (losses.bradley_terry_loss, PAIR[:2], {}),
    *((loss, PAIR, {"beta": 0.1}) for loss in (*ANCHORED, losses.exo_pair_loss, losses.aot_loss, losses.aot_unpaired_loss)),
    (losses.dpo_norm_loss, LENGTHY, {"beta": 0.1}),
    (losses.r_dpo_loss, LENGTHY, {"beta": 0.1, "alpha": 0.1}),
    (losses.cpo_loss, PAIR[:3], {"beta": 0.1}),
    (losses.orpo_loss, PAIR[:2], {"beta": 0.1}),
    (losses.wpo_weights, PAIR[:2], {}),
    (losses.kto_loss, KTO, {"beta": 0.1}),
    (losses.kto_kl, KTO[:3], {}),
    (losses.belief_calibration_loss, BELIEF, {}),
    (losses.gdpo_loss, GDPO, {}),
    (losses.jensen_shannon_distance, BELIEF, {}),
]


@pytest.mark.parametrize("loss, arrays, options", SHAPES, ids=lambda x: getattr(x, "__name__", ""))
def test_shapes_that_would_broadcast_silently_are_errors(loss, arrays, options):
    jax.eval_shape(lambda: loss(*arrays, **options))
    for index, array in enumerate(arrays):
        changed = list(arrays)
        changed[index] = np.asarray(array)[..., None]
        with pytest.raises(ValueError, match=r"\(2, (3, )?1\)|\(1,\)"):
            jax.eval_shape(lambda changed=changed: loss(*changed, **options))


def test_wrong_kinds_of_numbers_are_errors():
    with pytest.raises(ValueError, match="levels must be integers.*float32"):
        losses.ordered_mpo_loss(SET[0], SET[1], jnp.zeros((2, 3)), SET[3], beta=0.1)
    with pytest.raises(ValueError, match="desirable must be bool.*int"):
        losses.kto_loss(KTO[0], KTO[1], np.array([1, -1]), 0.0, beta=0.1)
    with pytest.raises(ValueError, match="rejected_scores.*complex64"):
        losses.bradley_terry_loss(np.zeros(2), np.zeros(2, np.complex64))
    with pytest.raises(ValueError, match="scores must have a last axis"):
        losses.partition(1.0, True)
    with pytest.raises(ValueError, match=r"mask \(3,\)"):
        losses.belief_calibration_loss(*BELIEF, mask=np.ones(3, bool))
