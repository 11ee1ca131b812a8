"""What a model says: the KL estimator against its exact value, frequencies of beliefs, consistency, and which are sampled."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from align_jax.evaluation import Responses
from align_jax.evaluation import samples as sampling
from align_jax.models import Decoder, ModelConfig, init_weights

SHAPE = ModelConfig(vocab_size=5, width=8, mlp_width=8, layers=1, heads=2, kv_heads=1, head_size=4, max_length=16)
EOS = 4


def decoder(seed, scale=1.0):
    weights = jax.tree.map(lambda w: w * scale, init_weights(SHAPE, jax.random.key(seed), param_dtype="float32"))
    return Decoder(SHAPE, weights, dtype="float32")


def next_token_logps(model, prompt):
    """`log p(a | x)` `[V]` and `log p(b | x, a)` `[V, V]`, from one call of the model."""
    rows = np.asarray([[*prompt.tolist(), token] for token in range(SHAPE.vocab_size)])
    logps = np.asarray(jax.nn.log_softmax(jax.jit(model)(rows)), np.float64)
    return logps[0, -2], logps[:, -1]


def test_the_estimate_of_the_kl_is_that_of_the_two_models():
    policy, reference = decoder(0, 3.0), decoder(1, 3.0)
    prompts = [np.asarray(p, np.int32) for p in ([1, 2], [3, 2])]
    said = sampling.sample_responses(
        policy, prompts, samples=400, max_new_tokens=2, eos_ids=[EOS], seed=0, prompt_ids=[0, 1], rows=256
    )
    assert len(said) == 2 and said.slots == 400
    lengths = np.asarray([[len(s.tokens) for s in said[i].segments] for i in range(2)])
    logps, expected = np.zeros((2, 2, 400)), []
    for i, prompt in enumerate(prompts):
        (p, p2), (q, q2) = both = [next_token_logps(model, prompt) for model in (policy, reference)]
        later = [0 if a == EOS else np.exp(p2[a]) @ (p2[a] - q2[a]) for a in range(SHAPE.vocab_size)]
        expected.append(np.exp(p) @ (p - q + later))
        for m, (first, second) in enumerate(both):
            tokens = [s.tokens.tolist() for s in said[i].segments]
            logps[m, i] = [first[t[0]] + (second[t[0], t[1]] if len(t) > 1 else 0) for t in tokens]
    scored = Responses(np.arange(2), logps[0], np.ones((2, 400), bool), lengths, {})
    metrics = sampling.divergence_metrics(scored, logps[1])
    total, count = metrics["kl/reference"]
    error = (logps[0] - logps[1]).std(1) / np.sqrt(400)
    assert min(expected) > 0.05 and (np.abs(total / count - expected) < 4 * error).all() and (error < 0.1).all()
    assert metrics["kl/reference_per_token"][1].tolist() == lengths.sum(1).tolist()
    assert not sampling.divergence_metrics(scored, scored.logps)["kl/reference"][0].any()


def opinions():
    prompts = [np.asarray([1], np.int32), np.asarray([2, 3], np.int32)]
    statements = [[[0], [1], [2]], [[3], [0, 1]]]
    targets = [np.asarray([0.5, 0.3, 0.2]), np.asarray([0.9, 0.1])]
    return sampling.Opinions(prompts, statements, [("a", "b", "c"), ("a", "b")], targets)


def test_drawn_beliefs_have_the_predicted_frequencies():
    from align_jax.generation import belief_logps

    model, world = decoder(2, 3.0), opinions()
    drawn = sampling.draw_beliefs(model, world, [4, 7], samples=400, eos_ids=[EOS], seed=0, rows=256, max_new_tokens=3)
    metrics = sampling.sampled_belief_metrics(drawn, world.targets)
    for i, logps in enumerate(belief_logps(model, [p.tolist() for p in world.prompts], world.statements)):
        predicted = np.exp(logps) / np.exp(logps).sum()
        counts = np.bincount(drawn[i], minlength=len(logps))
        assert counts.sum() == 400
        np.testing.assert_allclose(counts / 400, predicted, atol=4 * np.sqrt(0.25 / 400))
        expected = jensenshannon(counts / 400, world.targets[i])
        assert metrics["beliefs/js_distance_sampled"][0][i] == pytest.approx(expected, abs=1e-5)


def test_a_distribution_that_nobody_knows_has_no_distance():
    total, weight = sampling.sampled_belief_metrics(
        [np.array([0, 1]), np.array([1, 1])], [np.full(2, np.nan), np.array([0, 1])]
    )["beliefs/js_distance_sampled"]
    assert total.tolist() == [0.0, 0.0] and weight.tolist() == [0.0, 1.0]


def test_every_belief_gets_as_many_texts():
    texts = sampling.texts_of_every_belief(
        decoder(2), opinions(), samples=7, prompt_ids=[0, 1], eos_ids=[EOS], seed=0, rows=16, max_new_tokens=3
    )
    assert [[belief for belief, _ in of_prompt] for of_prompt in texts] == [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1]]
    assert all(1 <= len(sample.tokens) <= 3 for of_prompt in texts for _, sample in of_prompt)


def test_consistency_counts_what_was_judged():
    options = [("a", "b"), ("b", "c")]
    metrics = sampling.consistency_metrics([[0, 0, 1], [1, 0]], [[0, 1, None], [1, 1]], options)
    assert {name: (s.tolist(), w.tolist()) for name, (s, w) in metrics.items()} == {
        "consistency/accuracy": ([1, 1], [2, 2]),
        "consistency/chance": ([1, 1], [2, 2]),
        "consistency/belief/a": ([1, 0], [2, 0]),
        "consistency/belief/b": ([0, 0], [0, 1]),
        "consistency/belief/c": ([0, 1], [0, 1]),
    }
    assert sampling.consistency_metrics([[0]], [[None]], [("a", "b")]) == {}


def test_texts_that_repeat_a_statement_are_counted():
    texts = [["(Negative)\n(Neutral)", "a Negative one", "no"], ["yes", "say yes to it", "well,\n yes \nsure", " 1 : no : so"]]
    found = sampling.repetition_metrics(texts, [["(Negative)\n", "(Neutral)\n"], ["yes\n", " 1 : no :", " "]])
    sums, weights = found["consistency/repeats_statement"]
    assert (sums.tolist(), weights.tolist()) == ([1, 3], [3, 4])
    assert sampling.repetition_metrics([["a"]], [[" "]])["consistency/repeats_statement"][0].tolist() == [0]


def test_distinct_prompts_are_sampled_once_and_evenly():
    keys = ["b", "a", "b", "c", "a", "d", "e"]
    assert sampling.distinct(keys, None).tolist() == [0, 1, 3, 5, 6]
    assert sampling.distinct(keys, 3).tolist() == [0, 3, 6]
    assert sampling.distinct(keys, 9).tolist() == [0, 1, 3, 5, 6]
