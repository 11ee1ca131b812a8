"""GDPO with beliefs that nobody labelled, with a distribution of beliefs as condition, and with the authors' tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.config import Config
from align_jax.data.arrange import Beliefs
from align_jax.errors import UserError
from align_jax.objectives import GDPO
from align_jax.objectives.gdpo import smoothed_posterior

N = 3


def mean(entry):
    return float(entry[0].sum() / entry[1].sum())


def wide(texts=2, extra=0, seed=0, **labels):
    """Log-probs `[3, N + N texts + extra N]` of texts behind every belief, and their batch; the second group has two
    beliefs, the last one is padding."""
    rng = np.random.default_rng(seed)
    k = N * (1 + texts + extra)
    logps, ref = rng.normal(-3, 1, (2, 3, k)).astype(np.float32)
    mask = np.ones((3, k), bool)
    behind = np.arange(N, N + N * texts).reshape(N, texts)
    mask[1, [2, *behind[2], *(k - 1 - N * i for i in range(extra))]] = False
    mask[2] = False
    logps[~mask] = np.nan
    targets = np.array([[0.7, 0.2, 0.1], [0.4, 0.6, np.nan], [np.nan] * 3], np.float32)
    given = {"target_probs": targets, "chosen_belief": np.array([1, 0, 0]), "belief_smoothing": np.zeros(3, np.float32)}
    lengths = np.tile(np.arange(1, k + 1), (3, 1))
    return jnp.asarray(logps), GroupLabels(mask, lengths, given | {"ref_logps": ref} | labels)


def narrow(logps, batch, beliefs, targets, texts=2):
    """The same with the texts behind one belief of each group alone, and targets."""

    def taken(x):
        own = [np.asarray(x)[g, N + b * texts : N + (b + 1) * texts] for g, b in enumerate(beliefs)]
        return np.concatenate([np.asarray(x)[:, :N], own], axis=1)

    labels = {"target_probs": targets, "chosen_belief": np.asarray(beliefs), "ref_logps": taken(batch.labels["ref_logps"])}
    return jnp.asarray(taken(logps)), GroupLabels(taken(batch.mask), taken(batch.lengths), labels)


def loss_and_gradient(objective, logps, batch):
    statistic = objective.statistics(logps, batch)
    statistic = None if statistic is None else statistic[0] / statistic[1]

    def total(own):
        metrics = objective(own, batch, statistic)
        return jnp.sum(metrics["loss"][0]), metrics

    (value, metrics), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(logps)
    return float(value), np.asarray(gradient), metrics


@pytest.mark.parametrize("texts, preference", [(2, "dpo"), (3, "kto")])
def test_with_a_posterior_that_is_certain_latent_beliefs_are_labelled_ones(texts, preference):
    logps, batch = wide(texts)
    beliefs, ref = [1, 0, 0], np.array(batch.labels["ref_logps"])
    for g, b in enumerate(beliefs):
        ref[g, [N + texts * i for i in range(N) if i != b]] -= 1000
    batch = batch.with_labels(ref_logps=ref)
    options = dict(preference=preference, calibration_weight=0.7, belief_weight=1.3, preference_weight=2.0, sft_weight=0.4)
    value, gradient, metrics = loss_and_gradient(GDPO(latent_beliefs=True, **options), logps, batch)
    one_hot = np.eye(N, dtype=np.float32)[beliefs]
    own, labelled = narrow(logps, batch, beliefs, one_hot, texts)
    wanted, exact, _ = loss_and_gradient(GDPO(**options), own, labelled)
    assert value == pytest.approx(wanted, rel=1e-6)
    np.testing.assert_allclose(gradient[:, :N], exact[:, :N], rtol=1e-6)
    behind = gradient[:, N:].reshape(3, N, texts)
    np.testing.assert_allclose(np.stack([behind[g, b] for g, b in enumerate(beliefs)]), exact[:, N:], rtol=1e-6)
    assert np.count_nonzero(behind) == np.count_nonzero(exact[:, N:])
    assert mean(metrics["latent/agreement"]) == 1 and mean(metrics["latent/entropy"]) == 0


def slow_latent(logps, ref, count, *, share, beta, weights):
    """One group, float64: `logps` and `ref` are beliefs `[count]` and (chosen, rejected) texts `[count, 2]`."""
    (beliefs, texts), (ref_beliefs, ref_texts) = logps, ref
    joint = [ref_beliefs[b] + ref_texts[b, 0] for b in range(count)]
    q = np.exp(joint) / np.sum(np.exp(joint))
    target = [(1 - share) * q[b] + share / count for b in range(count)]
    calibration = sum(t * (np.log(t) - beliefs[b]) for b, t in enumerate(target))
    statement = sum(q[b] * beliefs[b] / (b + 1) for b in range(count))
    preference = 0.0
    for b in range(count):
        h = (texts[b, 0] - ref_texts[b, 0]) - (texts[b, 1] - ref_texts[b, 1])
        preference += q[b] * np.log1p(np.exp(-beta * h))
    return weights[0] * calibration - weights[1] * statement + weights[2] * preference, q


@pytest.mark.parametrize("posterior", ["reference", "policy"])
def test_latent_beliefs_equal_the_sum_that_is_written(posterior):
    logps, batch = wide()
    share = np.array([0.2, 0.3, 0.5], np.float32)
    batch = batch.with_labels(belief_smoothing=share)
    option = GDPO(latent_beliefs=True, posterior=posterior, calibration_weight=0.7, belief_weight=1.3, beta=0.3)
    value, gradient, metrics = loss_and_gradient(option, logps, batch)

    def parts(x, g):
        return np.asarray(x, np.float64)[g, :N], np.asarray(x, np.float64)[g, N:].reshape(N, 2)

    def total(x, fixed):
        known = batch.labels["ref_logps"] if posterior == "reference" else fixed
        found = []
        for g, count in enumerate([3, 2]):
            ref = parts(batch.labels["ref_logps"], g)
            q = slow_latent(parts(x, g), parts(known, g), count, share=share[g], beta=0.3, weights=(0.7, 1.3, 1.0))[1]
            # The posterior of `known`, the rest of x and the reference.
            replaced = np.log(q) - ref[1][:count, 0]
            found.append(
                slow_latent(parts(x, g), (replaced, ref[1]), count, share=share[g], beta=0.3, weights=(0.7, 1.3, 1.0))[0]
            )
        return sum(found)

    exact = np.nan_to_num(np.asarray(logps, np.float64))
    assert value == pytest.approx(total(exact, exact), rel=1e-5)
    slow = np.zeros_like(gradient)
    for place in np.argwhere(np.asarray(batch.mask)):
        step = np.zeros_like(exact)
        step[tuple(place)] = 1e-5
        slow[tuple(place)] = (total(exact + step, exact) - total(exact - step, exact)) / 2e-5
    np.testing.assert_allclose(gradient, slow, rtol=1e-4, atol=1e-5)
    assert 0 < mean(metrics["latent/entropy"]) < np.log(3)
    shares = [metrics[f"latent/share/{b}"] for b in range(N)]
    assert sum(float(s[0].sum()) for s in shares) == pytest.approx(2) and float(shares[2][1].sum()) == 1


def test_permuting_the_beliefs_permutes_the_result():
    logps, batch = wide()
    keep = slice(0, 1)  # the group with all beliefs
    order = np.array([2, 0, 1])
    texts = N + (order[:, None] * 2 + np.arange(2)).ravel()
    slots = np.concatenate([order, texts])
    one = GroupLabels(batch.mask[keep], batch.lengths[keep], {name: v[keep] for name, v in batch.labels.items()})
    labels = one.labels | {"ref_logps": one.labels["ref_logps"][:, slots], "target_probs": one.labels["target_probs"][:, order]}
    moved = GroupLabels(one.mask[:, slots], one.lengths[:, slots], labels | {"chosen_belief": np.argsort(order)[[1]]})
    option = GDPO(latent_beliefs=True, sft_weight=1.0)
    value, gradient, metrics = loss_and_gradient(option, logps[keep], one)
    other, changed, found = loss_and_gradient(option, logps[keep][:, slots], moved)
    assert other == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(changed, gradient[:, slots], rtol=1e-5, atol=1e-7)
    assert len({round(mean(metrics[f"latent/share/{b}"]), 4) for b in range(N)}) == N
    for b in range(N):
        assert mean(found[f"latent/share/{b}"]) == pytest.approx(mean(metrics[f"latent/share/{order[b]}"]), rel=1e-5)
    assert mean(found["latent/agreement"]) == mean(metrics["latent/agreement"])


def toy_logps(params, answers):
    """Two beliefs about one prompt, four texts: log-probs of slots belief 0, belief 1, and (chosen, rejected) behind each."""
    beliefs, texts = jax.nn.log_softmax(params["beliefs"]), jax.nn.log_softmax(params["texts"], axis=1)
    chosen, rejected = texts[:, answers].T, texts[:, (answers + 2) % 4].T  # [G, 2]
    behind = jnp.stack([chosen, rejected], axis=-1).reshape(len(answers), 4)
    return jnp.concatenate([jnp.broadcast_to(beliefs, (len(answers), 2)), behind], axis=1)


@pytest.mark.parametrize("posterior", ["reference", "policy"])
@pytest.mark.parametrize("preference_weight", [0.0, 1.0])
def test_the_evidence_bound_does_not_fall(posterior, preference_weight):
    """Two components; a round is an expectation step and a few small maximization steps."""
    rng = np.random.default_rng(3)
    answers = rng.choice(4, 40, p=[0.5, 0.2, 0.05, 0.25])
    params = {"beliefs": jnp.zeros(2), "texts": jnp.asarray(rng.normal(0, 1, (2, 4)), jnp.float32)}
    # All texts have one token, so that the terms are the expected complete log-likelihood; no prior.
    option = GDPO(
        latent_beliefs=True, posterior=posterior, belief_weight=0.0, sft_weight=1.0, preference_weight=preference_weight
    )
    nothing = {
        "target_probs": np.full((40, 2), np.nan),
        "chosen_belief": np.full(40, -1),
        "belief_smoothing": np.zeros(40, np.float32),
    }

    def total(params, ref):
        groups = GroupLabels(np.ones((40, 6), bool), np.ones((40, 6), int), nothing | {"ref_logps": ref})
        metrics = option(toy_logps(params, answers), groups)
        return jnp.sum(metrics["loss"][0]) / 40, metrics

    @jax.jit
    def maximize(params, ref):
        gradient, metrics = jax.grad(total, has_aux=True)(params, ref)
        return jax.tree.map(lambda p, g: p - 0.2 * g, params, gradient), metrics["latent/evidence"][0].mean()

    evidence = []
    for _ in range(15):
        ref = toy_logps(params, answers)  # the model of the last round
        for _ in range(4):
            params, value = maximize(params, ref)
            evidence.append(float(value))
    assert np.all(np.diff(evidence) > -1e-6) and evidence[-1] > evidence[0] + 0.1


def test_calibrating_each_row_is_calibrating_towards_the_smoothed_mean_of_the_prompt():
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(N), 7).astype(np.float32)
    prior, rows = 0.5, 7
    share = np.full(rows, N * prior / (rows + N * prior), np.float32)
    each = smoothed_posterior(jnp.asarray(q), np.ones((rows, N), bool), jnp.asarray(share))
    together = (q.sum(0) + prior) / (rows + N * prior)
    np.testing.assert_allclose(each.mean(0), together, rtol=1e-6)

    def rows_apart(logits):
        logps = jnp.broadcast_to(jax.nn.log_softmax(logits), (rows, N))
        return jnp.mean(losses.belief_calibration_loss(logps, each))

    def prompt(logits):
        return losses.belief_calibration_loss(jax.nn.log_softmax(logits)[None], together[None])[0]

    start = jnp.asarray(rng.normal(0, 1, N), jnp.float32)
    np.testing.assert_allclose(jax.grad(rows_apart)(start), jax.grad(prompt)(start), rtol=1e-4, atol=1e-7)


def test_smoothing_spreads_over_the_beliefs_that_exist():
    q, mask = jnp.array([[1.0, 0.0, 0.0], [0.2, 0.8, 0.0]]), np.array([[1, 1, 1], [1, 1, 0]], bool)
    found = smoothed_posterior(q, mask, jnp.array([0.3, 0.5]))
    np.testing.assert_allclose(found, [[0.8, 0.1, 0.1], [0.35, 0.65, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("texts, preference", [(2, "dpo"), (3, "kto"), (3, "mpo")])
def test_conditioning_on_a_distribution_is_the_sum_over_beliefs(texts, preference):
    more = {"text_scores": np.array([[1.0, 1.0, 0.0]] * 3)} if preference == "mpo" else {}
    logps, batch = wide(texts, **more)
    targets = np.asarray(batch.labels["target_probs"])
    options = dict(preference=preference, calibration_weight=0.0, belief_weight=0.0)
    alone = []
    statistic = jnp.float32(0.4)
    for b in range(N):
        own, one = narrow(logps, batch, [b, min(b, 1), 0], targets, texts)
        one = one.with_labels(**more)
        alone.append(GDPO(**options)(own, one, statistic))
    found = GDPO(condition="distribution", **options)(logps, batch, statistic)
    for name in ("loss", "rewards/margins", "rewards/accuracies"):
        wanted = [
            sum(targets[g, b] * float(alone[b][name][0][g] / alone[b][name][1][g]) for b in range(n))
            for g, n in ((0, 3), (1, 2))
        ]
        np.testing.assert_allclose(mean(found[name]), np.mean(wanted), rtol=1e-5)
    assert found["rewards/margins/majority"][1].tolist() == pytest.approx([0.7, 0.6, 0.0])
    assert found["rewards/margins/minority"][1].tolist() == pytest.approx([0.3, 0.4, 0.0])
    if preference == "kto":
        total, count = GDPO(condition="distribution", **options).statistics(logps, batch)
        ratios = np.nan_to_num(np.asarray(logps) - batch.labels["ref_logps"])[:, N + 2 :: 3]
        assert total == pytest.approx(np.sum(np.nan_to_num(targets) * ratios), rel=1e-5) and count == pytest.approx(2)


def test_conditioning_on_a_distribution_keeps_statement_and_sft_of_the_accepted_belief():
    logps, batch = wide()
    out = GDPO(condition="distribution")(logps, batch)
    own, one = narrow(logps, batch, [1, 0, 0], batch.labels["target_probs"])
    plain = GDPO()(own, one)
    for name in ("loss/belief", "loss/sft", "loss/calibration"):
        np.testing.assert_allclose(mean(out[name]), mean(plain[name]), rtol=1e-6)
    assert mean(out["loss/preference"]) != pytest.approx(mean(plain["loss/preference"]))


def test_the_weights_of_kto_reach_the_texts():
    logps, batch = wide(3)
    beliefs = [1, 0, 0]
    logps, batch = narrow(logps, batch, beliefs, np.eye(N, dtype=np.float32)[beliefs], 3)
    option = GDPO(
        preference="kto", calibration_weight=0, belief_weight=0, desirable_weight=2.0, undesirable_weight=0.5, beta=0.3
    )
    value, gradient, _ = loss_and_gradient(option, logps, batch)
    ref, exact = np.asarray(batch.labels["ref_logps"], np.float64), np.nan_to_num(np.asarray(logps, np.float64))
    z0 = max(0.0, np.mean([exact[g, N + 2] - ref[g, N + 2] for g in (0, 1)]))

    def total(x):
        gains = [[0.3 * (x[g, N + i] - ref[g, N + i] - z0) for i in (0, 1)] for g in (0, 1)]
        return sum(2.0 / (1 + np.exp(good)) / 2 + 0.5 / (1 + np.exp(-bad)) / 2 for good, bad in gains)

    assert value == pytest.approx(total(exact), rel=1e-5)
    slow = np.zeros_like(gradient)
    for place in np.argwhere(np.asarray(batch.mask)):
        step = np.zeros_like(exact)
        step[tuple(place)] = 1e-5
        slow[tuple(place)] = (total(exact + step) - total(exact - step)) / 2e-5
    np.testing.assert_allclose(gradient, slow, rtol=1e-4, atol=1e-6)
    plain = GDPO(preference="kto", calibration_weight=0, belief_weight=0, beta=0.3)
    assert loss_and_gradient(plain, logps, batch)[0] != pytest.approx(value, rel=1e-3)


def with_parts(extra):
    """Texts behind the accepted belief, then `extra` times N slots of parts of statements."""
    rng = np.random.default_rng(5)
    k = N + 2 + N * extra
    logps, ref = rng.normal(-3, 1, (2, 3, k)).astype(np.float32)
    mask = np.ones((3, k), bool)
    mask[1, [2, *(k - 1 - N * i for i in range(extra))]] = False
    targets = np.array([[0.7, 0.2, 0.1], [0.4, 0.6, 0.0], [0.1, 0.1, 0.8]], np.float32)
    labels = {"target_probs": targets, "chosen_belief": np.array([1, 0, 2]), "ref_logps": ref}
    return logps, GroupLabels(mask, np.tile(np.arange(1, k + 1), (3, 1)), labels)


def test_calibrating_the_id_reads_its_tokens_alone():
    logps, batch = with_parts(1)
    out = GDPO(calibrate="id")(logps, batch)
    ids, targets = np.where(batch.mask, logps, 0)[:, 5:], batch.labels["target_probs"]
    np.testing.assert_allclose(out["loss/calibration"][0], losses.belief_calibration_loss(ids, targets), rtol=1e-6)
    np.testing.assert_allclose(mean(out["beliefs/mass"]), np.mean(np.exp(logps[:, :3]).sum(1) - [0, np.exp(logps[1, 2]), 0]))
    np.testing.assert_allclose(mean(out["beliefs/id_mass"]), np.mean(np.exp(logps[:, 5:]).sum(1) - [0, np.exp(logps[1, 7]), 0]))
    assert out["beliefs/id_js_distance"][0][0] != out["beliefs/js_distance"][0][0]
    np.testing.assert_allclose(out["loss/belief"][0], [-logps[0, 1] / 2, -logps[1, 0], -logps[2, 2] / 3], rtol=1e-6)


@pytest.mark.parametrize("calibrate, extra", [("statement", 1), ("id", 2)])
def test_the_authors_statement_is_the_shortened_one(calibrate, extra):
    logps, batch = with_parts(extra)
    out = GDPO(calibrate=calibrate, statement="authors")(logps, batch)
    first = 5 + N * (extra - 1)
    own = [-logps[0, first + 1] / (first + 2), -logps[1, first] / (first + 1), -logps[2, first + 2] / (first + 3)]
    np.testing.assert_allclose(out["loss/belief"][0], own, rtol=1e-6)
    calibrated = np.where(batch.mask, logps, 0)[:, 5:8] if calibrate == "id" else np.where(batch.mask, logps, 0)[:, :3]
    wanted = losses.belief_calibration_loss(calibrated, batch.labels["target_probs"])
    np.testing.assert_allclose(out["loss/calibration"][0], wanted, rtol=1e-6)


def test_rows_whose_distribution_nobody_knows_count_in_no_distance():
    logps, batch = wide()
    unknown = np.array(batch.labels["target_probs"])
    unknown[0] = np.nan
    out = GDPO(latent_beliefs=True)(logps, batch.with_labels(target_probs=unknown, chosen_belief=np.array([-1, 1, 0])))
    assert out["beliefs/js_distance"][1].tolist() == [0, 1, 0] and out["beliefs/mass"][1].tolist() == [1, 1, 0]
    assert out["latent/agreement"][1].tolist() == [0, 1, 0]
    assert out["rewards/margins/majority"][1][0] == out["rewards/margins/minority"][1][0] == 0 < out["rewards/margins"][1][0]
    assert all(np.isfinite(x).all() for entry in out.values() for x in entry)


def test_the_arrangement_follows_the_options():
    assert GDPO(latent_beliefs=True).arrangement == Beliefs("dpo", every=True, labelled=False)
    assert GDPO(condition="distribution", preference="mpo").arrangement == Beliefs("mpo", every=True)
    assert GDPO(calibrate="id", statement="authors").arrangement == Beliefs("dpo", ids=True, shortened=True)
    assert Beliefs("kto").key() == ("gdpo", "kto") != Beliefs("kto", every=True).key()
    for arrangement in (Beliefs("kto", every=True, ids=True, shortened=True), Beliefs(ids=True), Beliefs(shortened=True)):
        texts = 3 if arrangement.preference == "kto" else 2
        slots = 4 * (1 + arrangement.ids + arrangement.shortened) + texts * (4 if arrangement.every else 1)
        assert arrangement.sizes(slots) == {"K": slots, "N": 4, "T": texts}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"calibrate": "ids"}, "objective.calibrate must be one of statement, id, got 'ids'"),
        ({"statement": "half"}, "objective.statement must be one of whole, authors"),
        ({"condition": "all"}, "objective.condition must be one of accepted, distribution"),
        ({"posterior": "last"}, "objective.posterior must be one of reference, policy"),
        ({"posterior": "policy"}, "objective.posterior=policy is used with objective.latent_beliefs only"),
        ({"latent_beliefs": True, "condition": "distribution"}, "objective.condition: with latent_beliefs"),
        ({"latent_beliefs": True, "preference": "mpo"}, "objective.preference: mpo"),
        ({"desirable_weight": 2.0}, "objective.desirable_weight=2.0 is used by preference kto only, not by dpo"),
        ({"preference": "mpo", "undesirable_weight": 0.5}, "objective.undesirable_weight=0.5 is used by preference kto only"),
        ({"preference": "kto", "desirable_weight": 0, "undesirable_weight": 0}, "objective.desirable_weight: 0, and"),
        (
            {"calibration_weight": 0, "belief_weight": 0, "preference_weight": 0},
            "calibration_weight: nothing is learned with calibration_weight, .*, sft_weight all 0; raise one",
        ),
        ({"calibration_weight": 0, "divergence": "js"}, "objective.divergence: js has no .* objective.calibration_weight: 0;"),
        ({"calibration_weight": 0, "renormalize": True}, "objective.renormalize: True has no .*calibration_weight: 0;"),
        ({"calibration_weight": 0, "calibrate": "id"}, "objective.calibrate: id has no .*calibration_weight: 0;"),
        ({"belief_weight": 0, "statement": "authors"}, "objective.statement: authors has no .* objective.belief_weight: 0;"),
    ],
)
def test_options_that_do_not_go_together_are_named(options, said):
    with pytest.raises(UserError, match=said):
        GDPO(**options)
    with pytest.raises(UserError, match=r"^--objective\.\w+: \w"):  # without marks between key and words
        Config.of({"objective": {"name": "gdpo"}}, *(f"objective.{key}={value}" for key, value in options.items()))
