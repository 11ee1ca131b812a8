"""The posterior of a belief distribution against scipy and simulation; how strongly prompts are shrunk."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import scipy.stats

from align_jax.data import DataConfig, Encoder, GroupDataset, targets
from align_jax.data.arrange import Beliefs
from align_jax.data.targets import choose_strength, held_out_likelihood, mean_distribution, posterior
from align_jax.errors import UserError
from tests.data.toys import char_tokenizer, opinion, write_jsonl


def test_the_examples():
    assert doctest.testmod(targets).failed == 0


def test_the_interval_is_that_of_the_beta_marginals():
    counts, prior = np.array([[3.0, 0, 7], [0, 0, 2.5]]), np.array([0.5, 0.5, 2])
    found = posterior(counts, prior)
    low, high = found.interval(0.9)
    for p in range(2):
        alpha = counts[p] + prior
        np.testing.assert_allclose(found.mean[p], scipy.stats.dirichlet(alpha).mean(), rtol=1e-12)
        for b in range(3):
            marginal = scipy.stats.beta(alpha[b], alpha.sum() - alpha[b])
            np.testing.assert_allclose((low[p, b], high[p, b]), marginal.interval(0.9), rtol=1e-9)


def test_without_a_prior_what_was_never_answered_is_impossible():
    found = posterior(np.array([4, 0]), 0.0)
    assert found.interval()[0].tolist() == [1, 0] and found.interval()[1].tolist() == [1, 0]
    assert found.draws(3).tolist() == [[1, 0]] * 3
    for counts, prior in (([-1, 2], 1.0), ([1, 2], -1.0), ([0, 0], 0.0)):
        with pytest.raises(ValueError, match="or more|neither answers nor a prior"):
            posterior(np.array(counts), prior)


@pytest.mark.parametrize("answers", [3, 40])
def test_the_interval_holds_the_truth_as_often_as_it_says(answers):
    rng = np.random.default_rng(0)
    truth = rng.dirichlet([1, 1, 1], 4000)
    low, high = posterior(rng.multinomial(answers, truth), 1.0).interval(0.9)
    np.testing.assert_allclose(np.mean((low <= truth) & (truth <= high), axis=0), 0.9, atol=0.015)


def test_draws_have_the_moments_of_the_posterior():
    found = posterior(np.array([5, 1, 0]), 1.0)
    draws, exact = found.draws(20_000), scipy.stats.dirichlet(found.alpha)
    np.testing.assert_allclose(draws.mean(0), exact.mean(), atol=0.005)
    np.testing.assert_allclose(draws.var(0), exact.var(), rtol=0.05)
    np.testing.assert_array_equal(draws, found.draws(20_000))


def slow_likelihood(counts, strength, base):
    """Takes every answer out by itself."""
    total = 0.0
    for p in range(len(counts)):
        for b in range(counts.shape[1]):
            for _ in range(counts[p, b]):
                rest = counts.copy()
                rest[p, b] -= 1
                mean = (rest[:, b].sum() + base) / (rest.sum() + base * counts.shape[1])
                total += math.log((rest[p, b] + strength * mean) / (rest[p].sum() + strength))
    return total


def test_held_out_likelihood_leaves_one_answer_out_at_a_time():
    counts = np.random.default_rng(0).integers(0, 5, (6, 3))
    strengths = np.array([0.2, 3.0, 80.0])
    wanted = [slow_likelihood(counts, s, 0.5) for s in strengths]
    np.testing.assert_allclose(held_out_likelihood(counts, strengths, 0.5), wanted, rtol=1e-10)
    alone = np.array([[1, 5], [0, 5]])  # nothing else speaks for the first belief
    assert np.isfinite(held_out_likelihood(alone, strengths, 0.0)).all()


@pytest.mark.parametrize("strength", [1.0, 10.0, 100.0])
def test_the_strength_is_about_that_of_the_prior_that_the_prompts_were_drawn_from(strength):
    rng = np.random.default_rng(1)
    counts = rng.multinomial(60, rng.dirichlet(strength * np.array([0.5, 0.3, 0.2]), 400))
    found = choose_strength([counts])
    assert strength / 1.6 < found.value < strength * 1.6 and found.gain > 0 and not found.at_end


def test_prompts_that_are_alike_are_shrunk_much_and_others_little():
    rng = np.random.default_rng(2)
    alike = rng.multinomial(30, [0.7, 0.2, 0.1], 200)
    apart = rng.multinomial(30, rng.dirichlet([0.1] * 3, 200))
    assert choose_strength([alike]).value > 300 > 3 > choose_strength([apart]).value
    single = np.eye(3, dtype=int)[rng.integers(0, 3, 50)]  # one answer each: only the mean is known
    assert choose_strength([single]).at_end
    with pytest.raises(ValueError, match="no answers"):
        choose_strength([np.zeros((3, 2))])


def test_shrinking_comes_nearer_to_the_truth_than_frequencies():
    rng = np.random.default_rng(3)
    truth = rng.dirichlet(20 * np.array([0.1, 0.7, 0.2]), 300)
    counts = rng.multinomial(6, truth)
    prior = choose_strength([counts]).value * mean_distribution(counts)
    error = [np.abs(posterior(counts, p).mean - truth).sum(1).mean() for p in (1e-9, 1.0, prior)]
    assert error[2] < 0.6 * error[1] < 0.6 * error[0]


def dataset(tmp_path, rows, **config):
    made = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows), format="gdpo", **config)
    return GroupDataset(made, "train", Encoder(char_tokenizer(), made), arrangement=Beliefs())


def test_rows_are_counted_by_prompt_and_group_and_shrunk_towards_the_mean_that_the_config_asks_for(tmp_path):
    answers = {("p", "a"): [1, 1, 1], ("q", "a"): [1, 1, 0], ("p", "b"): [2, 2, 2], ("q", "b"): [2, 2, 2], ("r", ""): [0]}
    rows = [opinion(p, accepted=b, group=g) for (p, g), all_of in answers.items() for b in all_of]
    given = dataset(tmp_path, rows)
    np.testing.assert_array_equal(given[0].labels["target_probs"], np.float32([0.25, 0.5, 0.25]))
    np.testing.assert_array_equal(given[0].labels["target_alpha"], 0)  # nobody says how many answers these are
    counted = dataset(tmp_path, rows, target="estimate")
    np.testing.assert_array_equal(counted[3].labels["target_alpha"], np.float32([2, 3, 1]))
    np.testing.assert_allclose(counted[3].labels["target_probs"], np.float32([2, 3, 1]) / 6, rtol=1e-6)
    overall = dataset(tmp_path, rows, target="estimate", target_shrink="overall")
    by_group = dataset(tmp_path, rows, target="estimate", target_shrink="group")
    counts = np.array([[0, 3, 0], [1, 2, 0], [0, 0, 3], [0, 0, 3], [1, 0, 0]])
    for made, pools in ((overall, [counts]), (by_group, [counts[:2], counts[2:4]])):
        strength = choose_strength(pools, 1.0).value
        alpha = counts[1] + strength * mean_distribution(pools[0])
        np.testing.assert_allclose(made[3].labels["target_alpha"], alpha, rtol=1e-6)
        assert f"counts for {strength:.3g} answers (by held-out likelihood)" in "\n".join(made.notes)
    assert "p* of 5 prompts (no, yes, maybe) is shrunk towards their mean" in "\n".join(overall.notes)
    assert "p* of 1 prompt is not shrunk: no other prompt has the same options and group" in "\n".join(by_group.notes)
    np.testing.assert_array_equal(by_group[12].labels["target_alpha"], np.float32([2, 1, 1]))
    assert len({d.fingerprint for d in (given, counted, overall, by_group)}) == 4


def test_prompts_of_other_options_are_never_shrunk_towards_one_another(tmp_path):
    two = {"options": ["a", "b"], "accept_choice": None, "reject_choice": None, "reject_choice_id": 1, "probabilities": None}
    rows = [opinion("p", accepted=1, probabilities=None)] * 4 + [opinion("q", accepted=0, **two)]
    made = dataset(tmp_path, rows, target_shrink="overall")
    np.testing.assert_array_equal(made[0].labels["target_alpha"], np.float32([1, 5, 1]))
    np.testing.assert_array_equal(made[4].labels["target_alpha"], np.float32([2, 1, 0]))
    assert any("p* of 2 prompts is not shrunk" in note for note in made.notes)


def test_a_distribution_that_is_given_says_what_it_was_counted_from(tmp_path):
    made = dataset(tmp_path, [opinion(answers=40), opinion("q", answers=["a text"])])
    np.testing.assert_allclose(made[0].labels["target_alpha"], np.float32([10, 20, 10]))
    np.testing.assert_array_equal(made[1].labels["target_alpha"], 0)  # a column of another meaning
    with pytest.raises(UserError, match="rows.jsonl:1: field 'answers': expected how many answers .* got 0"):
        dataset(tmp_path, [opinion(answers=0)])


def test_options_of_an_estimate_are_said_to_have_no_effect_where_every_row_has_a_distribution(tmp_path):
    some, every = [opinion("p"), opinion("q", probabilities=None)], [opinion("p"), opinion("q")]
    options = {"target_shrink": "overall", "belief_prior": 2.0}
    for rows, more, keys in (
        (every, options, ["data.target_shrink: overall", "data.belief_prior: 2.0"]),
        (every, {"target": "given", "belief_prior": 2.0}, ["data.belief_prior: 2.0"]),
        (every, {**options, "target": "estimate"}, []),
        (every, {}, []),
        (some, options, []),
    ):
        said = [note for note in dataset(tmp_path, rows, **more).notes if "has no effect: every row has" in note]
        assert [note.partition(" has no effect")[0] for note in said] == keys
        assert all("data.target: estimate" in note for note in said)


def test_what_is_learned_can_be_asked_for(tmp_path):
    rows = [opinion("p"), opinion("q", probabilities=None)]
    with pytest.raises(UserError, match="data.target: given, but 1 row has no `probabilities`"):
        dataset(tmp_path, rows, target="given")
    auto = dataset(tmp_path, rows)
    assert auto[0].labels["target_alpha"].sum() == 0 and auto[1].labels["target_alpha"].tolist() == [1, 2, 1]
    for values, message in (
        ({"target": "rows"}, "data.target: 'rows' is not one of auto, given, estimate"),
        ({"target_shrink": "all"}, "data.target_shrink: 'all' is not one of none, overall, group"),
        ({"target": "given", "target_shrink": "group"}, "data.target_shrink: 'group' has no effect"),
    ):
        with pytest.raises(UserError, match=message):
            DataConfig(**values)
