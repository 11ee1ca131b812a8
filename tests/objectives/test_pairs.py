"""Objectives over pairs: known values at the reference, the losses that they hand out, and keys that are checked."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import losses, objectives
from align_jax.errors import UserError
from align_jax.objectives import OBJECTIVES
from tests.objectives.test_objectives import batch_of, mean, pairs

LN2, RNG = np.log(2), np.random.default_rng(1)
# Of a policy that is its reference.
AT_THE_REFERENCE = {
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "bco_pair": 2 * LN2,
    "sppo_hard": 1 / (2 * 0.1**2),
    "nca_pair": 2 * LN2,
    "exo_pair": 0.5 * (np.log(0.5 / 0.999) + np.log(0.5 / 0.001)),
    "discopop": (LN2 + 1) / 2,
    "dpo_norm": LN2,
    "ld_dpo": LN2,
    "dpo_positive": LN2,
    "aot": LN2,
    "dpo": LN2,
}


@pytest.mark.parametrize("name", AT_THE_REFERENCE)
def test_the_loss_of_the_first_step_is_known(name):
    objective = OBJECTIVES[name]()
    slots = objective.arrangement.responses
    logps = RNG.normal(-20, 3, (4, slots)).astype(np.float32)
    out = objective(logps, batch_of(np.ones((4, slots), bool), ref_logps=logps))
    assert mean(out["loss"]) == pytest.approx(AT_THE_REFERENCE[name], rel=1e-5)
    assert mean(out["rewards/margins"]) == pytest.approx(0, abs=1e-6)


LENGTHS = RNG.integers(1, 9, (5, 2))
TOKENS = LENGTHS[:4].T.astype(np.float32)
LOG_COLLISIONS = np.float32(-1.5)  # of a token


def means(logps):
    return [s / n for s, n in zip(logps[:4].T, TOKENS, strict=True)]


@pytest.mark.parametrize(
    "objective, expected",
    [
        (objectives.APOZero(beta=0.3), lambda f, _: losses.apo_zero_loss(*f, beta=0.3)),
        (objectives.APODown(beta=0.3), lambda f, _: losses.apo_down_loss(*f, beta=0.3)),
        (objectives.BCOPair(beta=0.3), lambda f, _: losses.bco_pair_loss(*f, beta=0.3)),
        (objectives.SPPOHard(beta=0.3), lambda f, _: losses.sppo_hard_loss(*f, beta=0.3)),
        (objectives.NCAPair(beta=0.3), lambda f, _: losses.nca_pair_loss(*f, beta=0.3)),
        (objectives.EXOPair(label_smoothing=0.2), lambda f, _: losses.exo_pair_loss(*f, beta=0.1, label_smoothing=0.2)),
        (objectives.DiscoPOP(tau=0.5), lambda f, _: losses.discopop_loss(*f, beta=0.1, tau=0.5)),
        (objectives.DPONorm(beta=2.0), lambda f, _: losses.dpo_norm_loss(*f, *TOKENS, beta=2.0)),
        (objectives.RDPO(alpha=0.2), lambda f, _: losses.r_dpo_loss(*f, *TOKENS, beta=0.1, alpha=0.2)),
        (objectives.DPOPositive(penalty=5.0), lambda f, _: losses.dpo_positive_loss(*f, beta=0.1, penalty=5.0)),
        (
            objectives.WPO(beta=0.3),
            lambda f, m: losses.wpo_weights(*(x - LOG_COLLISIONS for x in m)) * losses.dpo_loss(*f, beta=0.3),
        ),
        (
            objectives.WPO(label_smoothing=0.1, alignment="none"),
            lambda f, m: losses.wpo_weights(*m) * losses.dpo_loss(*f, beta=0.1, label_smoothing=0.1),
        ),
        (objectives.CPO(sft_weight=0.5), lambda f, m: losses.cpo_loss(*f[:2], m[0], beta=0.1, sft_weight=0.5)),
        (objectives.ORPO(beta=0.3), lambda f, m: losses.orpo_loss(*m, beta=0.3)),
        (objectives.AOT(label_smoothing=0.1), lambda f, _: losses.aot_loss(*f, beta=0.1, label_smoothing=0.1)),
        (objectives.AOTUnpaired(beta=0.3), lambda f, _: losses.aot_unpaired_loss(*f, beta=0.3)),
        (
            objectives.DPO(divergence="alpha", divergence_alpha=0.9),
            lambda f, _: losses.f_dpo_loss(*f, beta=0.1, divergence="alpha", alpha=0.9),
        ),
        (objectives.DPO(divergence="js"), lambda f, _: losses.f_dpo_loss(*f, beta=0.1, divergence="js")),
        (objectives.DPO(sft_weight=0.7), lambda f, m: losses.dpo_loss(*f, beta=0.1) - 0.7 * m[0]),
        (
            objectives.SimPO(label_smoothing=0.2),
            lambda f, m: losses.simpo_loss(*m, beta=2.0, gamma=1.0, label_smoothing=0.2),
        ),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_an_objective_is_its_loss_over_existing_pairs(objective, expected):
    logps, batch = pairs()
    ref = batch.labels["ref_logps"] if objective.needs_reference else np.full_like(logps, np.nan)
    out = objective(logps, batch_of(batch.mask, LENGTHS, ref_logps=ref, log_collisions=LOG_COLLISIONS * LENGTHS))
    arrays = (logps[:4, 0], logps[:4, 1], ref[:4, 0], ref[:4, 1])
    np.testing.assert_allclose(mean(out["loss"]), np.mean(expected(arrays, means(logps))), rtol=1e-5)
    assert all(np.isfinite(x).all() for entry in out.values() for x in entry)
    assert ("drift/chosen" in out) == objective.needs_reference
    assert objective.needs_reference == (objective.name not in ("cpo", "orpo", "simpo"))


@pytest.mark.parametrize("name", ["dpo", "wpo", "robust_dpo", "hinge", "ipo", "exo_pair", "discopop", "dpo_norm", "r_dpo"])
def test_a_loss_of_the_margin_takes_the_scores_of_a_divergence_for_log_ratios(name):
    logps, batch = pairs()
    usual, own = OBJECTIVES[name](), OBJECTIVES[name](divergence="js")
    scored = {"ref_logps": batch.labels["ref_logps"], "log_collisions": logps - 1}
    labelled = batch_of(batch.mask, LENGTHS, **scored)
    inputs = usual.inputs(logps, batch.labels["ref_logps"], labelled)
    r = np.float64(logps[:4]) - batch.labels["ref_logps"][:4]
    scores = np.float32(np.log(2 / (1 + np.exp(-r)))).T
    wanted = usual.loss(*scores, *np.zeros((2, 4), np.float32), *(x[:4] for x in inputs[4:]))
    found = own(logps, labelled)
    np.testing.assert_allclose(mean(found["loss"]), np.mean(wanted), rtol=1e-5)
    assert abs(mean(found["loss"]) - mean(usual(logps, labelled)["loss"])) > 1e-3
    assert "gradients/cancelled" not in found


def test_bco_can_measure_rewards_from_their_mean_over_the_step():
    logps, batch = pairs()
    shifted = objectives.BCOPair(shift="batch")
    total, count = shifted.statistics(logps, batch)
    rewards = 0.1 * (logps - batch.labels["ref_logps"])[:4]
    np.testing.assert_allclose(total / count, np.mean(rewards), rtol=1e-4)
    out = shifted(logps, batch, total / count)
    ref = batch.labels["ref_logps"]
    four = (logps[:4, 0], logps[:4, 1], ref[:4, 0], ref[:4, 1])
    wanted = np.mean(losses.bco_pair_loss(*four, beta=0.1, delta=np.mean(rewards)))
    np.testing.assert_allclose(mean(out["loss"]), wanted, rtol=1e-5)
    assert objectives.BCOPair().statistics(logps, batch) is None


def test_tokens_behind_the_shorter_response_count_less():
    logps, ref = RNG.normal(-20, 3, (2, 3, 4)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]], bool)  # the chosen one is longer, the rejected one, padding
    logps[~mask] = ref[~mask] = np.nan
    lengths = np.array([[3, 3, 4, 0], [2, 2, 0, 6], [0, 0, 0, 0]])
    out = objectives.LDDPO(alpha=0.25)(logps, batch_of(mask, lengths, ref_logps=ref))
    r = np.where(mask, logps - ref, 0)
    h = (r[:2, 0] + 0.25 * r[:2, 2]) - (r[:2, 1] + 0.25 * r[:2, 3])
    np.testing.assert_allclose(mean(out["loss"]), np.mean(np.logaddexp(0, -0.1 * h)), rtol=1e-5)
    np.testing.assert_allclose(mean(out["rewards/chosen"]), np.mean(0.1 * (r[:2, 0] + r[:2, 2])), rtol=1e-4)
    np.testing.assert_allclose(out["drift/rejected"][1], [3, 8, 0])
    assert all(np.isfinite(x).all() for entry in out.values() for x in entry) and "gradients/cancelled" not in out


def test_pairs_cancel_by_the_margin_alone():
    logps, batch = pairs()
    has = {name: "gradients/cancelled" in OBJECTIVES[name]()(logps, batch) for name in ("dpo", "r_dpo", "dpo_norm", "apo_zero")}
    assert has == {"dpo": True, "r_dpo": True, "dpo_norm": True, "apo_zero": False}
    assert "gradients/cancelled" not in objectives.DPO(divergence="js")(logps, batch)
    turned = np.concatenate([logps[:1], logps[:1, ::-1]])
    both = batch_of(np.ones((2, 2), bool), [[3, 9], [9, 3]], ref_logps=np.zeros((2, 2), np.float32) + turned)
    assert mean(objectives.DPONorm()(turned, both)["gradients/cancelled"]) == pytest.approx(1, abs=1e-5)


def test_a_chosen_response_below_the_reference_is_pulled_up_hard():
    ref = np.float32([[-20.0, -20.0]])
    logps = ref - np.float32([[1.0, 2.0]])  # both less likely, the margin right
    batch = batch_of(np.ones((1, 2), bool), ref_logps=ref)
    slopes = [
        jax.grad(lambda x, o=o: jnp.sum(o(x, batch)["loss"][0]))(logps) for o in (objectives.DPO(), objectives.DPOPositive())
    ]
    assert slopes[1][0, 0] < 40 * slopes[0][0, 0] < 0


@pytest.mark.parametrize(
    "make, key",
    [
        (lambda: objectives.DPO(divergence="kl"), "objective.divergence: 'kl' is not one of reverse_kl, forward_kl, js, alpha"),
        (lambda: objectives.DPO(divergence_alpha=0.2), "objective.divergence_alpha=0.2 is used by divergence alpha only"),
        (lambda: objectives.DPO(divergence="js", reference_free=True), "leave out objective.reference_free"),
        (lambda: objectives.DPO(divergence="alpha", divergence_alpha=1.5), "objective.divergence_alpha"),
        (lambda: objectives.DPO(sft_weight=-1.0), "objective.sft_weight"),
        (lambda: objectives.BCOPair(shift="run"), "objective.shift: 'run' is not one of none, batch"),
        (lambda: objectives.EXOPair(label_smoothing=0.0), "objective.label_smoothing"),
        (lambda: objectives.DiscoPOP(tau=2.0), "objective.tau"),
        (lambda: objectives.RDPO(alpha=-0.1), "objective.alpha"),
        (lambda: objectives.LDDPO(alpha=1.1), "objective.alpha"),
        (lambda: objectives.DPOPositive(penalty=-1.0), "objective.penalty"),
        (lambda: objectives.CPO(label_smoothing=0.5), "objective.label_smoothing"),
        (lambda: objectives.AOT(label_smoothing=0.5), "objective.label_smoothing"),
        (lambda: objectives.SimPO(label_smoothing=0.5), "objective.label_smoothing"),
        (lambda: objectives.APOZero(beta=0.0), "objective.beta"),
    ],
)
def test_values_out_of_range_are_named(make, key):
    with pytest.raises(UserError, match=key):
        make()


def test_the_page_of_objectives_has_them_all():
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert rows - {"objective.name"} == set(OBJECTIVES)
