"""What must hold for pairwise losses and KTO."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import losses
from tests.losses import reference
from tests.losses.cases import pair_arrays

PAIR_LOSSES = {
    "dpo": lambda c, r: losses.dpo_loss(c, r, c * 0, r * 0, beta=1.0),
    "cdpo": lambda c, r: losses.dpo_loss(c, r, c * 0, r * 0, beta=1.0, label_smoothing=0.1),
    "robust": lambda c, r: losses.robust_dpo_loss(c, r, c * 0, r * 0, beta=1.0, label_smoothing=0.1),
    "hinge": lambda c, r: losses.hinge_loss(c, r, c * 0, r * 0, beta=1.0),
    "ipo": lambda c, r: losses.ipo_loss(c, r, c * 0, r * 0, beta=1.0),
    "simpo": lambda c, r: losses.simpo_loss(c, r, beta=1.0, gamma=0.5),
    "apo_zero": lambda c, r: losses.apo_zero_loss(c, r, c * 0, r * 0, beta=1.0),
    "bco_pair": lambda c, r: losses.bco_pair_loss(c, r, c * 0, r * 0, beta=1.0),
    "sppo_hard": lambda c, r: losses.sppo_hard_loss(c, r, c * 0, r * 0, beta=1.0),
    "nca_pair": lambda c, r: losses.nca_pair_loss(c, r, c * 0, r * 0, beta=1.0),
    "exo_pair": lambda c, r: losses.exo_pair_loss(c, r, c * 0, r * 0, beta=1.0),
    "discopop": lambda c, r: losses.discopop_loss(c, r, c * 0, r * 0, beta=1.0),
    "js": lambda c, r: losses.f_dpo_loss(c, r, c * 0, r * 0, beta=1.0, divergence="js"),
    "forward_kl": lambda c, r: losses.f_dpo_loss(c, r, c * 0, r * 0, beta=1.0, divergence="forward_kl"),
    "dpo_positive": lambda c, r: losses.dpo_positive_loss(c, r, c * 0, r * 0, beta=1.0, penalty=50.0),
    "cpo": lambda c, r: losses.cpo_loss(c, r, c * 0, beta=1.0),
    "orpo": lambda c, r: losses.orpo_loss(c, r, beta=1.0),
    "aot": lambda c, r: losses.aot_loss(c, r, c * 0, r * 0, beta=1.0),
    "kto": lambda c, r: losses.kto_loss(c, r, jnp.ones(4, bool), 0.0, beta=1.0),
    "bradley_terry": losses.bradley_terry_loss,
}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_finite_for_logits_of_ten_thousand(name):
    chosen, rejected = np.array([1e4, -1e4, 0, 0], np.float32), np.array([0, 0, 1e4, -1e4], np.float32)
    total = lambda c, r: (jnp.sum(PAIR_LOSSES[name](c, r)), PAIR_LOSSES[name](c, r))  # noqa: E731
    (_, values), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(chosen, rejected)
    assert np.all(np.isfinite(values)) and np.all(np.isfinite(gradients))
    assert values[0] < values[1] or name == "aot"  # quantiles know no pairs


def test_apo_down_is_finite_too_and_would_rather_see_both_fall():
    chosen, rejected = np.float32([1e4, -1e4, -1e4]), np.float32([0, 0, -2e4])
    values = losses.apo_down_loss(chosen, rejected, chosen * 0, rejected * 0, beta=1.0)
    np.testing.assert_allclose(values, [1, 1, 0])


@pytest.mark.parametrize("loss", [losses.aot_loss, losses.aot_unpaired_loss])
@pytest.mark.parametrize("filler", [np.nan, np.inf, 1e30])
def test_pairs_that_do_not_exist_have_no_quantile(loss, filler):
    arrays, mask = pair_arrays(), np.arange(8) % 3 != 1
    run = jax.value_and_grad(lambda *four: jnp.sum(loss(*four, mask=mask, beta=0.3)), argnums=(0, 1))
    alone = jax.value_and_grad(lambda *four: jnp.sum(loss(*four, beta=0.3)), argnums=(0, 1))(*(a[mask] for a in arrays))
    value, gradients = run(*(np.where(mask, a, np.float32(filler)) for a in arrays))
    np.testing.assert_allclose(value, alone[0], rtol=1e-6)
    for gradient, wanted in zip(gradients, alone[1], strict=True):
        np.testing.assert_allclose(gradient[mask], wanted, rtol=1e-5)
        assert not np.any(gradient[~mask])


def test_the_special_cases_of_the_further_losses():
    arrays = pair_arrays()
    sets, scores = np.stack(arrays[:2], 1), np.tile(np.float32([100.0, 0.0]), (8, 1))
    refs, whole = np.stack(arrays[2:], 1), np.ones((8, 2), bool)
    one_hot = losses.nca_loss(sets, refs, scores, whole, beta=0.3, temperature=1.0)
    np.testing.assert_allclose(losses.nca_pair_loss(*arrays, beta=0.3), one_hot, rtol=1e-5)
    dpo = losses.dpo_loss(*arrays, beta=0.3)
    ones = np.ones(8, np.float32)
    parts = [np.stack([a - 1, np.ones_like(a)], -1) for a in arrays]
    same = {
        "f_dpo": losses.f_dpo_loss(*arrays, beta=0.3, divergence="reverse_kl"),
        "alpha 1": losses.f_dpo_loss(*arrays, beta=0.3, divergence="alpha", alpha=1.0),
        "dpo_norm": losses.dpo_norm_loss(*arrays, ones, ones, beta=0.3),
        "r_dpo": losses.r_dpo_loss(*arrays, ones, 9 * ones, beta=0.3, alpha=0.0),
        "ld_dpo": losses.ld_dpo_loss(*parts, beta=0.3, alpha=1.0),
        "dpo_positive": losses.dpo_positive_loss(*arrays, beta=0.3, penalty=0.0),
        "aot": losses.aot_loss(*(a[:, None] for a in arrays), beta=0.3)[:, 0],
    }
    for name, values in same.items():
        np.testing.assert_allclose(values, dpo, rtol=1e-5, atol=1e-6, err_msg=name)


def test_dpo_of_a_policy_equal_to_its_reference_is_ln_2():
    chosen, rejected, *_ = pair_arrays()
    np.testing.assert_array_equal(
        losses.dpo_loss(chosen, rejected, chosen, rejected, beta=0.1), np.full(8, np.log(2), np.float32)
    )


def test_robust_loss_on_flipped_labels_is_dpo_on_clean_ones_in_expectation():
    chosen, rejected, ref_chosen, ref_rejected = pair_arrays()
    options = {"beta": 0.3, "label_smoothing": 0.2}
    right = losses.robust_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, **options)
    flipped = losses.robust_dpo_loss(rejected, chosen, ref_rejected, ref_chosen, **options)
    clean = losses.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    np.testing.assert_allclose(0.8 * right + 0.2 * flipped, clean, rtol=1e-5, atol=1e-6)


def test_label_smoothing_stops_the_margin_at_its_log_odds():
    margin = np.array([np.log(0.8 / 0.2)], np.float32)
    slope = jax.grad(lambda h: losses.dpo_loss(h, h * 0, h * 0, h * 0, beta=1.0, label_smoothing=0.2)[0])(margin)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_kl_estimate_is_the_clipped_mean_of_valid_pairs_without_a_gradient():
    policy, ref, *_ = pair_arrays()
    for mask in (np.ones(8, bool), np.arange(8) < 3, np.arange(8) < 1, np.zeros(8, bool)):
        for sign in (1, -1):
            filled = np.where(mask, sign * policy, np.nan)
            kl = losses.kto_kl(filled, np.where(mask, sign * ref, np.inf), mask)
            np.testing.assert_allclose(kl, reference.kto_kl(sign * policy, sign * ref, mask), rtol=1e-5)
    high = np.abs(policy) + np.abs(ref)
    assert losses.kto_kl(high, ref, np.ones(8, bool)) > 0
    assert losses.kto_kl(ref, high, np.ones(8, bool)) == 0
    assert not np.any(jax.grad(lambda p: losses.kto_kl(p, ref, np.ones(8, bool)))(high))


def test_kto_does_not_differentiate_its_kl():
    policy, ref, *_ = pair_arrays()
    by_kl = jax.grad(lambda kl: jnp.sum(losses.kto_loss(policy, ref, policy > -20, kl, beta=0.3)))(1.0)
    assert by_kl == 0


def test_traced_numbers_give_the_values_of_python_numbers():
    arrays = pair_arrays()
    traced = jax.jit(lambda b, s: losses.robust_dpo_loss(*arrays, beta=b, label_smoothing=s))(0.3, 0.1)
    np.testing.assert_allclose(traced, losses.robust_dpo_loss(*arrays, beta=0.3, label_smoothing=0.1), rtol=1e-6)
    scores, mask = np.stack(arrays[:2], 1), np.ones((8, 2), bool)
    options = {"beta": 0.3, "alpha": 0.5, "power": 2.0}
    traced = jax.jit(lambda o: losses.mpo_loss(scores, 0 * scores, scores, mask, **o))(options)
    np.testing.assert_allclose(traced, losses.mpo_loss(scores, 0 * scores, scores, mask, **options), rtol=1e-6)
