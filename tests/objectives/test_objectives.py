"""Objectives: the losses they hand out, what enters the mean, the metrics, and options that are checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.data.arrange import Beliefs
from align_jax.errors import UserError
from align_jax.objectives import DPO, GDPO, IPO, KTO, MPO, NCA, OBJECTIVES, SFT, InfoNCA, OrderedMPO, Reward, RobustDPO, SimPO
from align_jax.training.step import group_metrics

RNG = np.random.default_rng(0)


def batch_of(mask, lengths=None, **labels):
    mask = np.asarray(mask)
    lengths = np.full(mask.shape, 3) if lengths is None else np.asarray(lengths)
    return GroupLabels(mask, lengths, {k: np.asarray(v) for k, v in labels.items()})


def mean(entry):
    return float(entry[0].sum() / entry[1].sum())


def pairs(g=5):
    logps, ref = RNG.normal(-20, 3, (2, g, 2)).astype(np.float32)
    mask = np.ones((g, 2), bool)
    mask[-1] = False
    logps[-1], ref[-1] = np.nan, np.nan
    return logps, batch_of(mask, ref_logps=ref)


def test_every_objective_is_registered_under_its_name():
    assert {name: cls.name for name, cls in OBJECTIVES.items()} == {name: name for name in OBJECTIVES}
    assert set(OBJECTIVES) >= {"dpo", "robust_dpo", "hinge", "ipo", "simpo", "kto", "mpo", "infonca", "nca", "gdpo", "sft"}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_arrangement_says_the_labels_that_its_objective_reads(name):
    objective = OBJECTIVES[name]()
    k = objective.arrangement.responses or 5
    shapes = {**objective.arrangement.label_shapes(k), "ref_logps": ((k,), "float32")}
    if not objective.needs_reference:
        del shapes["ref_logps"]
    if objective.needs_collisions:
        shapes["log_collisions"] = ((k,), "float32")
    labels = {key: jax.ShapeDtypeStruct((3, *shape), dtype) for key, (shape, dtype) in shapes.items()}
    groups = GroupLabels(jax.ShapeDtypeStruct((3, k), bool), jax.ShapeDtypeStruct((3, k), "int32"), labels)
    logps = jax.ShapeDtypeStruct((3, k), "float32")
    metrics = jax.eval_shape(lambda values, own: group_metrics(values, own, objective), logps, groups)
    assert metrics["loss"][0].shape == metrics["loss"][1].shape == (3,)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"gdpo"}))
def test_random_labels_are_enough_for_a_loss(name):
    objective = OBJECTIVES[name]()
    k = objective.arrangement.responses or 4
    labels = {key: np.stack([value] * 3) for key, value in objective.arrangement.random_labels(k).items()}
    logps = RNG.normal(-20, 3, (2, 3, k)).astype(np.float32)
    scored = {"ref_logps": logps[1], "log_collisions": logps[0] - 1}
    out = group_metrics(logps[0], batch_of(np.ones((3, k), bool), **scored, **labels), objective)
    assert np.isfinite(mean(out["loss"])) and out["loss"][1].sum() > 0
    assert GDPO().arrangement.random_labels(k) is None  # beliefs come from data alone


def test_the_arrangement_of_gdpo_follows_its_preference():
    assert GDPO(preference="kto").arrangement == Beliefs("kto") != GDPO().arrangement
    assert GDPO().arrangement.has_beliefs and not MPO().arrangement.has_beliefs
    assert [o().arrangement.responses for o in (DPO, KTO, SFT, MPO)] == [2, 2, 1, None]


def test_dpo_takes_its_loss_over_existing_pairs_only():
    logps, batch = pairs()
    ref = batch.labels["ref_logps"]
    out = DPO(beta=0.3, label_smoothing=0.1)(logps, batch)
    expected = losses.dpo_loss(logps[:4, 0], logps[:4, 1], ref[:4, 0], ref[:4, 1], beta=0.3, label_smoothing=0.1)
    np.testing.assert_allclose(mean(out["loss"]), np.mean(expected), rtol=1e-6)
    rewards = 0.3 * (logps - ref)[:4]
    assert mean(out["rewards/accuracies"]) == np.mean(rewards[:, 0] > rewards[:, 1])
    np.testing.assert_allclose(mean(out["rewards/margins"]), np.mean(rewards[:, 0] - rewards[:, 1]), rtol=1e-5)
    assert all(np.isfinite(x).all() for entry in out.values() for x in entry)


def test_reference_free_ignores_the_reference():
    logps, batch = pairs()
    free = DPO(beta=0.3, reference_free=True)
    assert not free.needs_reference
    np.testing.assert_allclose(
        mean(free(logps, batch_of(batch.mask))["loss"]),
        np.mean(losses.dpo_loss(logps[:4, 0], logps[:4, 1], np.zeros(4), np.zeros(4), beta=0.3)),
        rtol=1e-6,
    )


def test_a_missing_reference_is_said():
    logps, batch = pairs()
    with pytest.raises(ValueError, match="ref_logps"):
        DPO()(logps, batch_of(batch.mask))


def test_ipo_can_average_over_tokens_as_trl_does():
    logps, batch = pairs()
    lengths = RNG.integers(1, 9, batch.mask.shape)
    batch = batch_of(batch.mask, lengths, **batch.labels)
    per_token = (logps / lengths)[:4], (batch.labels["ref_logps"] / lengths)[:4]
    expected = losses.ipo_loss(*per_token[0].T, *per_token[1].T, beta=0.1)
    np.testing.assert_allclose(mean(IPO(average_tokens=True)(logps, batch)["loss"]), np.mean(expected), rtol=1e-5)
    assert mean(IPO()(logps, batch)["loss"]) != pytest.approx(float(np.mean(expected)))


def test_simpo_averages_over_tokens_and_needs_no_reference():
    logps, batch = pairs()
    out = SimPO(beta=2.0, gamma=0.5)(logps, batch_of(batch.mask, np.full((5, 2), 4)))
    expected = losses.simpo_loss(logps[:4, 0] / 4, logps[:4, 1] / 4, beta=2.0, gamma=0.5)
    np.testing.assert_allclose(mean(out["loss"]), np.mean(expected), rtol=1e-6)
    assert not SimPO().needs_reference


def groups():
    logps, ref = RNG.normal(-20, 3, (2, 4, 3)).astype(np.float32)
    scores = np.array([[1, 5, 3], [2, 2, 2], [4, 1, np.nan], [np.nan] * 3], np.float32)
    mask = ~np.isnan(scores)
    return logps, batch_of(mask, scores=scores, ref_logps=ref)


def test_groups_without_contrast_leave_the_mean_and_are_counted():
    logps, batch = groups()
    out = MPO(beta=0.2, alpha=0.5)(logps, batch)
    values = losses.mpo_loss(logps, batch.labels["ref_logps"], batch.scores, batch.mask, beta=0.2, alpha=0.5)
    np.testing.assert_allclose(mean(out["loss"]), np.mean(np.asarray(values)[[0, 2]]), rtol=1e-6)
    assert mean(out["groups/no_contrast"]) == pytest.approx(1 / 3)  # the padding group is no group


def test_accuracy_counts_all_accepted_rejected_pairs():
    rewards = np.array([[3.0, 2.0, 1.0, 4.0]])
    batch = batch_of(np.ones((1, 4), bool), scores=[[10.0, 0.0, 0.0, 8.0]], ref_logps=np.zeros((1, 4)))
    out = MPO(beta=1.0)(rewards, batch)
    assert out["rewards/accuracies"][1].sum() == 4 and mean(out["rewards/accuracies"]) == 1.0
    assert mean(MPO(beta=1.0)(-rewards, batch)["rewards/accuracies"]) == 0.0
    assert mean(out["rewards/chosen"]) == 3.5 and mean(out["rewards/rejected"]) == 1.5


def test_rewards_that_differ_by_rounding_are_ties():
    logps = np.float32([[-1000.0, -800.0]])
    batch = batch_of(np.ones((1, 2), bool), scores=[[1.0, 0.0]], ref_logps=logps + np.float32([[6e-5, 0.0]]))
    assert mean(DPO(beta=1.0)(logps, batch)["rewards/accuracies"]) == 0.5
    assert mean(MPO(beta=1.0)(logps, batch)["rewards/accuracies"]) == 0.5
    batch = batch.with_labels(ref_logps=logps - np.float32([[0.01, 0.0]]))
    assert mean(DPO(beta=1.0)(logps, batch)["rewards/accuracies"]) == 1.0


@pytest.mark.parametrize("cls, loss", [(InfoNCA, losses.infonca_loss), (NCA, losses.nca_loss)])
def test_soft_targets_count_groups_of_equal_scores_too(cls, loss):
    logps, batch = groups()
    values = loss(logps, batch.labels["ref_logps"], batch.scores, batch.mask, beta=0.2, temperature=2.0)
    out = cls(beta=0.2, temperature=2.0)(logps, batch)
    np.testing.assert_allclose(mean(out["loss"]), np.mean(np.asarray(values)[:3]), rtol=1e-5)


def test_ordered_levels_come_from_equal_intervals_of_the_scores():
    logps, ref = RNG.normal(-20, 3, (2, 1, 4)).astype(np.float32)
    batch = batch_of(np.ones((1, 4), bool), scores=[[9.0, 10.0, 5.5, 1.0]], ref_logps=ref)
    expected = losses.ordered_mpo_loss(logps, ref, np.array([[0, 0, 1, 2]]), batch.mask, beta=0.1)
    np.testing.assert_allclose(mean(OrderedMPO(levels=3)(logps, batch)["loss"]), expected[0], rtol=1e-6)


@pytest.mark.parametrize(
    "how, levels, number",
    [
        ({"levels_by": "range"}, [0, 2, 2, 2, 2], 2),  # one outlier leaves no middle
        ({"levels_by": "quantiles"}, [0, 0, 1, 2, 2], 3),
        ({"levels_by": "quantiles", "levels": 2}, [0, 0, 0, 1, 1], 2),
        ({"levels_by": "thresholds", "thresholds": [3, 4]}, [0, 0, 1, 2, 2], 3),
        ({"levels_by": "given"}, [0, 1, 2, 2, 2], 3),
        ({"levels_by": "given", "levels": None}, [0, 1, 2, 3, 3], 4),
    ],
)
def test_levels_are_those_that_the_config_asks_for(how, levels, number):
    logps, ref = RNG.normal(-20, 3, (2, 2, 6)).astype(np.float32)
    scores = np.float32([[100.0, 4.0, 3.0, 2.0, 2.0, np.nan], [np.nan] * 6])
    mask = ~np.isnan(scores)
    out = OrderedMPO(**how)(logps, batch_of(mask, scores=scores, ref_logps=ref))
    expected = losses.ordered_mpo_loss(logps[:1], ref[:1], np.array([[*levels, 0]]), mask[:1], beta=0.1)
    np.testing.assert_allclose(mean(out["loss"]), expected[0], rtol=1e-6)
    assert mean(out["groups/levels"]) == number and mean(out["groups/no_contrast"]) == 0


def test_a_group_within_one_level_is_left_out_and_counted():
    logps, ref = RNG.normal(-20, 3, (2, 2, 3)).astype(np.float32)
    batch = batch_of(np.ones((2, 3), bool), scores=[[9.0, 8.0, 7.0], [9.0, 1.0, 1.0]], ref_logps=ref)
    out = OrderedMPO(levels=2, levels_by="thresholds", thresholds=[5.0])(logps, batch)
    assert mean(out["groups/no_contrast"]) == 0.5 and out["loss"][1].tolist() == [0, 1] and float(out["loss"][0][0]) == 0


def test_levels_that_cannot_be_are_refused():
    for options, message in (
        ({"levels_by": "median"}, "levels_by: 'median' is not one of range, quantiles, thresholds, given"),
        ({"levels_by": "thresholds"}, r"thresholds: \[\], with levels_by thresholds"),
        ({"thresholds": [1.0]}, r"thresholds: \[1.0\], with levels_by range"),
        ({"levels_by": "thresholds", "thresholds": [1.0]}, "into 2 levels, but objective.levels is 3; set it to 2"),
        ({"levels_by": "thresholds", "thresholds": [2.0, 1.0]}, "must be finite numbers that rise"),
        ({"levels": None}, "null, but levels_by range needs a number"),
    ):
        with pytest.raises(UserError, match=message):
            OrderedMPO(**options)


def test_kto_uses_the_statistic_of_the_whole_batch_and_never_a_negative_one():
    logps, ref = RNG.normal(-20, 3, (2, 4, 2)).astype(np.float32)
    batch = batch_of(np.ones((4, 2), bool), desirable=[True, False, True, True], ref_logps=ref)
    total, count = KTO().statistics(logps, batch)
    np.testing.assert_allclose(total / count, np.mean(logps[:, 1] - ref[:, 1]), rtol=1e-5)
    for statistic in (0.7, -3.0):
        out = KTO(beta=0.2, undesirable_weight=0.5)(logps, batch, jnp.float32(statistic))
        expected = losses.kto_loss(
            logps[:, 0], ref[:, 0], batch.labels["desirable"], max(statistic, 0.0), beta=0.2, undesirable_weight=0.5
        )
        np.testing.assert_allclose(mean(out["loss"]), np.mean(expected), rtol=1e-6)


def test_sft_is_a_mean_over_tokens():
    logps = np.array([[-6.0], [-1.0], [np.nan]], np.float32)
    out = SFT()(logps, batch_of([[True], [True], [False]], [[3], [1], [5]]))
    assert mean(out["loss"]) == pytest.approx(7 / 4)


@pytest.mark.parametrize("contrast, loss", [("set", "bradley_terry_set_loss"), ("all_pairs", "bradley_terry_pairs_loss")])
def test_reward_takes_scores_and_needs_no_reference(contrast, loss):
    _, batch = groups()
    scores = RNG.normal(0, 2, batch.mask.shape).astype(np.float32)
    scores[~batch.mask] = np.nan
    batch = batch_of(batch.mask, scores=batch.scores)
    out = Reward(contrast=contrast, center=0.1)(scores, batch)
    values = getattr(losses, loss)(scores, batch.scores, batch.mask)
    values += 0.1 * losses.score_center_loss(scores, batch.scores, batch.mask)
    np.testing.assert_allclose(mean(out["loss"]), np.mean(np.asarray(values)[[0, 2]]), rtol=1e-6)
    np.testing.assert_allclose(mean(out["rewards/mean"]), np.mean(scores[batch.mask]), rtol=1e-5)
    # group 0: response 1 against 0 and 2; group 2: response 0 against 1
    right = [scores[0, 1] > scores[0, 0], scores[0, 1] > scores[0, 2], scores[2, 0] > scores[2, 1]]
    assert mean(out["rewards/accuracies"]) == pytest.approx(np.mean(right))
    assert not Reward().needs_reference and Reward.head == "score" and MPO.head == "lm_head"
    assert all(np.isfinite(x).all() for entry in out.values() for x in entry)
    ties = Reward()(np.zeros_like(scores), batch)
    assert mean(ties["rewards/accuracies"]) == 0.5 and mean(ties["loss"]) == pytest.approx(np.log(2))


def gdpo_batch(texts=2, **labels):
    g, n = 3, 3
    logps, ref = RNG.normal(-3, 1, (2, g, n + texts)).astype(np.float32)
    mask = np.ones((g, n + texts), bool)
    mask[1, 2] = False  # the second prompt has two beliefs
    mask[2] = False  # padding
    logps[~mask] = np.nan
    targets = np.array([[0.7, 0.2, 0.1], [0.5, 0.5, np.nan], [np.nan] * 3], np.float32)
    lengths = np.tile(np.arange(1, n + texts + 1), (g, 1))
    return logps, batch_of(mask, lengths, target_probs=targets, chosen_belief=[1, 0, 0], ref_logps=ref, **labels)


def test_gdpo_is_the_sum_of_its_three_terms():
    logps, batch = gdpo_batch()
    ref = batch.labels["ref_logps"]
    out = GDPO(calibration_weight=2.0, belief_weight=0.5, preference_weight=3.0)(logps, batch)
    first, second = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.5])
    calibration = [np.sum(first * (np.log(first) - logps[0, :3])), np.sum(second * (np.log(second) - logps[1, :2]))]
    statement = [-logps[0, 1] / 2, -logps[1, 0] / 1]
    preference = losses.dpo_loss(logps[:2, 3], logps[:2, 4], ref[:2, 3], ref[:2, 4], beta=0.1)
    expected = np.mean(2 * np.array(calibration) + 0.5 * np.array(statement) + 3 * np.asarray(preference))
    np.testing.assert_allclose(mean(out["loss"]), expected, rtol=1e-5)
    np.testing.assert_allclose(mean(out["loss/calibration"]), np.mean(calibration), rtol=1e-5)
    assert out["loss"][1].sum() == 2
    assert all(np.isfinite(x).all() for entry in out.values() for x in entry)


def test_gdpo_can_add_the_likelihood_of_the_accepted_text():
    logps, batch = gdpo_batch()  # text lengths 4 and 5
    plain, added = GDPO()(logps, batch), GDPO(sft_weight=2.0)(logps, batch)
    wanted = -np.mean(logps[:2, 3] / 4)
    np.testing.assert_allclose([mean(plain["loss/sft"]), mean(added["loss/sft"])], wanted, rtol=1e-6)
    np.testing.assert_allclose(mean(added["loss"]), mean(plain["loss"]) + 2 * wanted, rtol=1e-6)

    scores = np.array([[1.0, 1.0, 0.0]] * 3)
    logps, batch = gdpo_batch(texts=3, text_scores=scores)
    alone = GDPO(preference="mpo", sft_weight=1.0, calibration_weight=0.0, belief_weight=0.0, preference_weight=0.0)
    gradient = jax.grad(lambda own: jnp.sum(alone(own, batch)["loss"][0]))(jnp.asarray(logps))
    expected = np.zeros_like(logps)
    expected[:2, 3], expected[:2, 4] = -1 / 8, -1 / 10  # half of a mean over 4 tokens, and of one over 5
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_gdpo_renormalised_ignores_probability_outside_the_beliefs():
    logps, batch = gdpo_batch()
    shifted = logps.copy()
    shifted[:, :3] -= 2.0
    option = GDPO(renormalize=True, belief_weight=0.0, preference_weight=0.0)
    np.testing.assert_allclose(mean(option(logps, batch)["loss"]), mean(option(shifted, batch)["loss"]), rtol=1e-5)
    plain = GDPO(belief_weight=0.0, preference_weight=0.0)
    np.testing.assert_allclose(mean(plain(shifted, batch)["loss"]), mean(plain(logps, batch)["loss"]) + 2.0, rtol=1e-5)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(
    "divergence, loss",
    [
        ("kl", losses.belief_calibration_loss),
        ("reverse_kl", losses.belief_reverse_kl_loss),
        ("js", losses.belief_jensen_shannon_loss),
        ("tv", losses.belief_total_variation_loss),
    ],
)
def test_gdpo_calibrates_by_the_divergence_asked_for(divergence, loss, renormalize):
    logps, batch = gdpo_batch()
    targets = batch.labels["target_probs"]
    wanted = [float(loss(logps[g, :n], targets[g, :n], renormalize=renormalize)) for g, n in ((0, 3), (1, 2))]
    option = GDPO(divergence=divergence, renormalize=renormalize, belief_weight=0.0, preference_weight=0.0)
    out = option(logps, batch)
    np.testing.assert_allclose([mean(out["loss"]), mean(out["loss/calibration"])], np.mean(wanted), rtol=1e-5)
    gradient = jax.grad(lambda own: jnp.sum(option(own, batch)["loss"][0]))(jnp.asarray(logps))
    there = np.broadcast_to(np.arange(5) < np.array([3, 2, 0])[:, None], (3, 5))
    assert np.all(np.asarray(gradient)[~there] == 0) and np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def test_gdpo_belief_metrics_and_majority_split():
    from scipy.spatial.distance import jensenshannon

    logps, batch = gdpo_batch()
    out = GDPO()(logps, batch)
    predicted = [np.exp(logps[0, :3]), np.exp(logps[1, :2])]
    distances = [jensenshannon(p, t) for p, t in zip(predicted, ([0.7, 0.2, 0.1], [0.5, 0.5]), strict=True)]
    np.testing.assert_allclose(mean(out["beliefs/js_distance"]), np.mean(distances), rtol=1e-4)
    np.testing.assert_allclose(mean(out["beliefs/mass"]), np.mean([p.sum() for p in predicted]), rtol=1e-5)
    assert out["rewards/accuracies/majority"][1].tolist() == [0, 1, 0]
    assert out["rewards/accuracies/minority"][1].tolist() == [1, 0, 0]


def test_gdpo_with_kto_and_mpo_preferences():
    logps, batch = gdpo_batch(texts=3)
    ref, kto = batch.labels["ref_logps"], GDPO(preference="kto", calibration_weight=0.0, belief_weight=0.0)
    total, count = kto.statistics(logps, batch)
    np.testing.assert_allclose(total / count, np.mean((logps - ref)[:2, 5]), rtol=1e-5)
    each = [losses.kto_loss(logps[:2, 3 + i], ref[:2, 3 + i], np.full(2, i == 0), 0.4, beta=0.1) for i in (0, 1)]
    np.testing.assert_allclose(mean(kto(logps, batch, jnp.float32(0.4))["loss"]), np.mean(each), rtol=1e-5)

    scores = np.array([[1.0, 1.0, 0.0]] * 3)
    logps, batch = gdpo_batch(texts=3, text_scores=scores)
    mpo = GDPO(preference="mpo", calibration_weight=0.0, belief_weight=0.0)
    expected = losses.mpo_loss(logps[:2, 3:], batch.labels["ref_logps"][:2, 3:], scores[:2], np.ones((2, 3), bool), beta=0.1)
    np.testing.assert_allclose(mean(mpo(logps, batch)["loss"]), np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize(
    "make, key",
    [
        (lambda: DPO(beta=0.0), "objective.beta"),
        (lambda: DPO(label_smoothing=0.5), "objective.label_smoothing"),
        (lambda: RobustDPO(label_smoothing=-0.1), "objective.label_smoothing"),
        (lambda: MPO(alpha=-1.0), "objective.alpha"),
        (lambda: MPO(power=-1.0), "objective.power"),
        (lambda: NCA(temperature=0.0), "objective.temperature"),
        (lambda: OrderedMPO(levels=1), "objective.levels"),
        (lambda: KTO(desirable_weight=-1.0), "objective.desirable_weight"),
        (lambda: SimPO(gamma=-1.0), "objective.gamma"),
        (lambda: GDPO(preference="ipo"), "objective.preference must be one of dpo, kto, mpo, got 'ipo'"),
        (lambda: GDPO(divergence="l2"), "objective.divergence must be one of kl, reverse_kl, js, tv, got 'l2'"),
        (lambda: GDPO(sft_weight=-1.0), "objective.sft_weight"),
        (lambda: GDPO(alpha=0.1), "objective.alpha=0.1 is used by preference mpo only"),
        (lambda: MPO(beta=float("nan")), "objective.beta"),
        (lambda: Reward(center=-1.0), "objective.center"),
        (lambda: Reward(contrast="pairs"), "objective.contrast must be one of all_pairs, set, got 'pairs'"),
    ],
)
def test_values_out_of_range_are_named(make, key):
    with pytest.raises(UserError, match=key):
        make()
