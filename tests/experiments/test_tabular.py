"""Tables of logits: their losses against float64, where training ends, and the figures made of them."""

import numpy as np
import pytest

from align_jax.experiments import tabular
from align_jax.experiments.tabular import TabularObjective
from tests.losses import reference

OBJECTIVES = {
    "mpo": TabularObjective("mpo", beta=0.5),
    "wmpo": TabularObjective("mpo", beta=0.5, alpha=0.7, power=2),
    "infonca": TabularObjective("infonca", beta=0.5, temperature=2.0),
    "dpo": TabularObjective("dpo", beta=0.5),
}
SLOW = {
    "mpo": lambda *given: reference.mpo(*given, beta=0.5),
    "wmpo": lambda *given: reference.mpo(*given, beta=0.5, alpha=0.7, power=2),
    "infonca": lambda *given: reference.infonca(*given, beta=0.5, temperature=2.0),
    "dpo": lambda policy, ref, scores, mask: _best_against_worst(policy - ref, scores),
}


def _best_against_worst(ratio, scores):
    if scores.max() == scores.min():
        return 0.0
    return -reference.log_sigmoid(0.5 * (ratio[scores.argmax()] - ratio[scores.argmin()]))


def log_softmax(z):
    return z - reference.logsumexp(z)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_those_of_the_reference_in_float64(name):
    rng = np.random.default_rng(0)
    logits, ref, sets = rng.normal(size=9), rng.normal(size=9), rng.integers(0, 9, (6, 4))
    scores = rng.normal(size=(6, 4))
    scores[0] = 1.0
    logps, ref_logps = log_softmax(logits), log_softmax(ref)
    slow = [SLOW[name](logps[s], ref_logps[s], k, np.ones(4, bool)) for s, k in zip(sets, scores, strict=True)]
    assert tabular.loss_of(OBJECTIVES[name], logits, ref, sets, scores) == pytest.approx(np.mean(slow), rel=1e-5)


def test_infonca_ends_at_its_optimum_and_mpo_on_the_accepted_set_in_the_proportions_of_its_start():
    rng, sets = np.random.default_rng(1), np.arange(5)[None]
    ref, scores = rng.normal(size=5), np.array([5.0, 4.0, 2.0, 1.0, 0.0])
    nca = TabularObjective("infonca", beta=0.5, temperature=3.0)
    for start in (ref, rng.normal(size=5)):
        path = tabular.trained(nca, ref, sets, scores[None], steps=600, rate=0.05, start=start)
        np.testing.assert_allclose(path[0], start, rtol=1e-6)
        wanted = reference.softmax(ref + scores / (0.5 * 3.0))
        np.testing.assert_allclose(tabular.probabilities(path[-1]), wanted, atol=1e-3)
    last = tabular.probabilities(tabular.trained(OBJECTIVES["mpo"], ref, sets, scores[None], steps=600, rate=0.05)[-1])
    assert last[:2].sum() > 0.99
    assert last[0] / last[1] == pytest.approx(np.exp(ref[0] - ref[1]), rel=1e-3)


def test_mpo_does_not_care_which_accepted_answer_has_the_mass():
    """With the mass on the accepted set, wherever in it, the loss is 0."""
    ref, sets, scores = np.log([0.2, 0.3, 0.5]), np.arange(3)[None], np.array([[2.0, 1.9, 0.0]])
    mpo = TabularObjective("mpo", beta=1.0)
    settled = [tabular.loss_of(mpo, np.log([p, 1 - p - 1e-9, 1e-9]), ref, sets, scores) for p in (0.1, 0.9)]
    assert max(settled) < 1e-6
    assert tabular.loss_of(mpo, np.log([0.5, 0.4, 0.1]), ref, sets, scores) > 0.01


def test_sets_have_the_correlation_and_the_distribution_that_are_asked_for():
    rng, probs, values = np.random.default_rng(0), np.array([0.5, 0.3, 0.2]), np.array([1.0, 2.0, 5.0])
    for rho in (0.0, 0.4):
        drawn = values[tabular.drawn_sets(rng, probs, 20000, 3, rho)]
        assert drawn.mean() == pytest.approx(probs @ values, abs=0.03)
        assert np.corrcoef(drawn[:, 0], drawn[:, 2])[0, 1] == pytest.approx(rho, abs=0.03)


def test_the_best_policy_at_a_kl_is_a_tilted_reference():
    ref, values = np.log([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 3.0])
    tilted = ref + 0.7 * values
    assert tabular.best_at_kl(ref, values, tabular.kl(tilted, ref)) == pytest.approx(tabular.expected(tilted, values), rel=1e-6)
    assert tabular.best_at_kl(ref, values, 50.0) == pytest.approx(3.0)


def test_a_value_where_a_path_is_so_far():
    assert tabular.at_kl([0.0, 0.2, 0.6], [1.0, 2.0, 4.0], 0.4) == pytest.approx(3.0)
    assert tabular.at_kl([0.0, 0.2], [1.0, 2.0], 0.4) is None
    assert tabular.kl(np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([0.5, 0.5])) == pytest.approx(
        [0.0, 0.9 * np.log(1.8) + 0.1 * np.log(0.2)]
    )


def test_unknown_objectives_are_refused():
    with pytest.raises(ValueError, match="mpo, dpo or infonca, got 'kto'"):
        tabular.loss_of(TabularObjective("kto"), np.zeros(2), np.zeros(2), [[0, 1]], [[0.0, 1.0]])
