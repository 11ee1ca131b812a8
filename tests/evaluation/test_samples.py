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


def exact(policy, reference, prompt):
    """KL over all responses of at most two tokens, from the two models' own next-token distributions."""
    log_p = lambda model, tokens: np.asarray(jax.nn.log_softmax(model(np.asarray([tokens]))[0, -1]), np.float64)  # noqa: E731
    p, q = log_p(policy, prompt), log_p(reference, prompt)
    total = float(np.exp(p) @ (p - q))
    for token in range(SHAPE.vocab_size):
        if token != EOS:
            p2, q2 = (log_p(model, [*prompt, token]) for model in (policy, reference))
            total += float(np.exp(p[token]) * (np.exp(p2) @ (p2 - q2)))
    return total


def test_the_estimate_of_the_kl_is_that_of_the_two_models():
    policy, reference = decoder(0, 3.0), decoder(1, 3.0)
    prompts = [np.asarray(p, np.int32) for p in ([1, 2], [3, 1, 2], [2])]
    said = sampling.sample_responses(
        policy, prompts, samples=300, max_new_tokens=2, eos_ids=[EOS], seed=0, prompt_ids=[0, 1, 2], rows=128
    )
    assert len(said) == 3 and said.slots == 300

    def score(model):
        logps = np.empty((3, 300), np.float64)
        for i, prompt in enumerate(prompts):
            table = {}
            for k, segment in enumerate(said[i].segments):
                tokens = (*prompt.tolist(), *segment.tokens.tolist())
                if tokens not in table:
                    rows = np.asarray(jax.nn.log_softmax(model(np.asarray([tokens]))[0]))
                    table[tokens] = sum(rows[t - 1, tokens[t]] for t in range(len(prompt), len(tokens)))
                logps[i, k] = table[tokens]
        return logps

    lengths = np.asarray([[len(s.tokens) for s in said[i].segments] for i in range(3)])
    scored = Responses(np.arange(3), score(policy), np.ones((3, 300), bool), lengths, {})
    metrics = sampling.divergence_metrics(scored, score(reference))
    total, count = metrics["kl/reference"]
    for i, prompt in enumerate(prompts):
        expected, ratios = exact(policy, reference, prompt.tolist()), scored.logps[i] - score(reference)[i]
        assert total[i] / count[i] == pytest.approx(expected, abs=4 * ratios.std() / np.sqrt(300))
        assert expected > 0.05
    assert metrics["kl/reference_per_token"][1].tolist() == lengths.sum(1).tolist()
    assert not sampling.divergence_metrics(scored, scored.logps)["kl/reference"][0].any()


def opinions():
    prompts = [np.asarray([1], np.int32), np.asarray([2, 3], np.int32)]
    statements = [[[0], [1], [2]], [[3], [0, 1]]]
    targets = [np.asarray([0.5, 0.3, 0.2]), np.asarray([0.9, 0.1])]
    return sampling.Opinions(prompts, statements, [("a", "b", "c"), ("a", "b")], targets)


def test_drawn_beliefs_have_the_predicted_frequencies():
    from align_jax.generate import belief_logps

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
        "consistency/belief/a": ([1, 0], [2, 0]),
        "consistency/belief/b": ([0, 0], [0, 1]),
        "consistency/belief/c": ([0, 1], [0, 1]),
    }
    assert sampling.consistency_metrics([[0]], [[None]], [("a", "b")]) == {}


def test_distinct_prompts_are_sampled_once_and_evenly():
    keys = ["b", "a", "b", "c", "a", "d", "e"]
    assert sampling.distinct(keys, None).tolist() == [0, 1, 3, 5, 6]
    assert sampling.distinct(keys, 3).tolist() == [0, 3, 6]
    assert sampling.distinct(keys, 9).tolist() == [0, 1, 3, 5, 6]
