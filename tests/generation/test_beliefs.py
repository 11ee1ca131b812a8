"""Beliefs first: their probabilities are those of the model, draws follow them, texts are conditioned on them."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy import stats

from align_jax.errors import UserError
from align_jax.generation import belief_logps, generate, generate_beliefs
from tests.generation.reference import tiny_model

PROMPTS = [[3, 4, 5], [6, 7], [3, 4, 5, 8]]
BELIEFS = [[[9, 10], [11], [12, 13, 14]], [[9, 10], [11]], [[9, 11], [10], [12], [20]]]
OPTIONS = dict(samples=4, max_new_tokens=6, seed=2)


@pytest.fixture(scope="module")
def model():
    return tiny_model(scale=0.1)


def whole_logp(model, prompt: list[int], belief: list[int]) -> float:
    tokens = np.asarray([prompt + belief + [0] * (10 - len(prompt + belief))])
    logps = np.asarray(jax.nn.log_softmax(jax.jit(lambda t: model(t))(tokens), axis=-1))[0]
    return sum(logps[len(prompt) - 1 + i, token] for i, token in enumerate(belief))


def test_probabilities_are_those_of_the_model(model):
    results = generate_beliefs(model, PROMPTS, BELIEFS, **OPTIONS)
    for prompt, beliefs, result in zip(PROMPTS, BELIEFS, results, strict=True):
        expected = np.array([whole_logp(model, prompt, belief) for belief in beliefs])
        np.testing.assert_allclose(result.logps, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(result.distribution, np.exp(expected) / np.exp(expected).sum(), rtol=1e-3)
        np.testing.assert_allclose(result.mass, np.exp(expected).sum(), rtol=1e-3)
        for sample in result.samples:
            assert sample.probability == result.distribution[sample.belief]


def test_texts_are_those_of_prompt_and_belief(model):
    results = generate_beliefs(model, PROMPTS, BELIEFS, **OPTIONS)
    contexts, found = [], []
    for i, result in enumerate(results):
        for number, sample in enumerate(result.samples):
            contexts.append((PROMPTS[i] + BELIEFS[i][sample.belief], i, number))
            found.append(sample.sample.tokens.tolist())
    texts = generate(model, [c[0] for c in contexts], prompt_ids=[c[1] for c in contexts], **OPTIONS)
    assert found == [texts[k][c[2]].tokens.tolist() for k, c in enumerate(contexts)]


def test_beliefs_are_drawn_from_their_distribution(model):
    beliefs = [[9], [11], [12], [13], [14], [15]]
    [result] = generate_beliefs(model, PROMPTS[:1], [beliefs], samples=600, max_new_tokens=1)
    counts = np.bincount([s.belief for s in result.samples], minlength=6)
    assert (result.distribution * 600 > 5).all()
    assert stats.chisquare(counts, result.distribution * 600).pvalue > 1e-4


def test_fixed_and_greedy_beliefs(model):
    results = generate_beliefs(model, PROMPTS, BELIEFS, fixed=[2, None, None], belief_temperature=0, **OPTIONS)
    chosen = [{s.belief for s in result.samples} for result in results]
    assert chosen == [{2}, {int(np.argmax(results[1].logps))}, {int(np.argmax(results[2].logps))}]


def test_more_prompts_than_are_scored_at_once(model, monkeypatch):
    monkeypatch.setattr("align_jax.generation.beliefs._GROUPS", 2)
    for few, logps in zip(belief_logps(model, PROMPTS, BELIEFS), BELIEFS, strict=True):
        assert few.shape == (len(logps),) and (few < 0).all()


def test_what_does_not_exist_is_named(model):
    with pytest.raises(UserError, match="prompt 1: belief 2 does not exist; there are 0 to 1"):
        generate_beliefs(model, PROMPTS, BELIEFS, fixed=[0, 2, 0], **OPTIONS)
    with pytest.raises(UserError, match="prompt 1: .* at least one token"):
        generate_beliefs(model, PROMPTS[:2], [BELIEFS[0], [[]]], **OPTIONS)
