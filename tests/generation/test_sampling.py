"""Filters and draws against sorting in float64, transformers' own processors, and chi-square."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from align_jax.errors import UserError
from align_jax.generation import Sampling
from align_jax.generation.sampling import _draw, filter_logits, penalize, sample
from tests.generation.reference import filtered_probs

FILTERS = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.3, "top_k": 10, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_filters_equal_sorting(options):
    logits = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32) * 2
    probs = jax.nn.softmax(filter_logits(jnp.asarray(logits), Sampling(**options)), axis=-1)
    expected = np.stack([filtered_probs(row, **options) for row in logits])
    np.testing.assert_allclose(probs, expected, atol=1e-6)
    assert ((np.asarray(probs) > 0) == (expected > 0)).all()


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_filters_equal_transformers(options):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    logits = np.random.default_rng(1).normal(size=(40, 50)).astype(np.float32) * 2
    x = torch.tensor(logits)
    for name, warper in (
        ("temperature", theirs.TemperatureLogitsWarper),
        ("top_k", theirs.TopKLogitsWarper),
        ("top_p", theirs.TopPLogitsWarper),
        ("min_p", theirs.MinPLogitsWarper),
    ):
        if name in options:
            x = warper(options[name])(None, x)
    ours = np.asarray(filter_logits(jnp.asarray(logits), Sampling(**options)))
    np.testing.assert_allclose(ours, x.numpy() - x.numpy().max(-1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_ties_are_kept():
    logits = jnp.asarray([[1.0, 2.0, 2.0, 2.0, 0.0]])
    kept = np.isfinite(filter_logits(logits, Sampling(top_k=2)))
    np.testing.assert_array_equal(kept, [[False, True, True, True, False]])


def test_logits_that_differ_in_their_last_bit_are_told_apart():
    near = np.nextafter(np.nextafter(np.float32(-1), np.float32(0)), np.float32(0))
    logits = jnp.asarray([[0.0, np.nextafter(near, np.float32(-1)), near]])
    kept = np.isfinite(filter_logits(logits, Sampling(top_k=2)))
    np.testing.assert_array_equal(kept, [[True, False, True]])


def test_a_draw_that_rounding_leaves_without_an_index_takes_the_last_that_has_a_weight():
    weights = jnp.asarray([0.25, 0.0, 0.5, 0.0])
    for uniform, index in ((0.0, 0), (0.3, 0), (0.34, 2), (1.0, 2)):
        assert _draw(weights, jnp.asarray([uniform])) == index


def test_repetition_penalty_equals_transformers():
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    rng = np.random.default_rng(2)
    logits, tokens = rng.normal(size=(4, 30)).astype(np.float32), rng.integers(0, 30, (4, 9))
    seen = np.zeros((4, 30), bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor(tokens), torch.tensor(logits)).numpy()
    np.testing.assert_allclose(penalize(jnp.asarray(logits), jnp.asarray(seen), 1.7), theirs, rtol=1e-6)


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_frequencies_match_the_softmax(options):
    logits = np.random.default_rng(3).normal(size=12).astype(np.float32)
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), (1, draws))
    drawn = sample(jnp.broadcast_to(logits, (1, draws, 12)), keys, Sampling(**options))
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=12)
    expected = filtered_probs(logits, **options) * draws
    assert (counts[expected == 0] == 0).all()
    likely = expected > 0
    assert likely.sum() > 1
    assert stats.chisquare(counts[likely], expected[likely]).pvalue > 1e-4


@pytest.mark.parametrize("options", [{"top_p": 0.0}, {"top_p": 1e-45}, {"temperature": 1e-38}, {"top_k": 1}, {"min_p": 1.0}])
def test_the_extremes_take_the_most_likely(options):
    logits = np.random.default_rng(5).normal(size=(2, 3, 300)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), (2, 3))
    np.testing.assert_array_equal(sample(jnp.asarray(logits), keys, Sampling(**options)), logits.argmax(-1))


def test_blocks_of_the_vocabulary_are_drawn_by_their_weight():
    """300 tokens are three blocks, the last one not full, the middle one removed."""
    logits = np.random.default_rng(6).normal(size=300).astype(np.float32)
    logits[128:256] = -np.inf
    draws = 60_000
    keys = jax.random.split(jax.random.key(1), (1, draws))
    counts = np.bincount(np.asarray(sample(jnp.broadcast_to(logits, (1, draws, 300)), keys, Sampling())).ravel(), minlength=300)
    likely = np.isfinite(logits)
    assert (counts[~likely] == 0).all()
    assert stats.chisquare(counts[likely], filtered_probs(logits)[likely] * draws).pvalue > 1e-4


def test_greedy_takes_the_most_likely():
    assert Sampling(temperature=0).greedy and not Sampling(temperature=0.01).greedy
    logits = np.random.default_rng(4).normal(size=(2, 3, 9)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), (2, 3))
    np.testing.assert_array_equal(sample(jnp.asarray(logits), keys, Sampling(temperature=0)), logits.argmax(-1))


@pytest.mark.parametrize(
    "name, value", [("temperature", -0.1), ("top_k", -1), ("top_p", 1.2), ("min_p", -1), ("repetition_penalty", 0)]
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(UserError, match=f"{name} must be .*{value}"):
        Sampling(**{name: value})
