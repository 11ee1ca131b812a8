"""Scores of responses: transformers' own sequence classifiers, and the plain model run on each conversation alone."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from align_jax.batch import useful_tokens
from align_jax.data import RowLayout, Segment, TokenGroup, make_groups, pack_groups
from align_jax.errors import UserError
from align_jax.hf import load_model
from align_jax.models import Decoder
from align_jax.models.attention import Tokens, visibility
from align_jax.models.decoder import Inputs
from align_jax.scoring.logps import response_logps
from align_jax.scoring.scores import response_scores
from tests.hf import models
from tests.models.test_decoder import big_weights
from tests.scoring.devices import on_eight_devices
from tests.scoring.test_logps import BASE, BELIEFS, GROUPS, by_row, group, tokens

REWARD = dataclasses.replace(BASE, head="score")
WINDOW = dataclasses.replace(REWARD, sliding_window=4, tied_embeddings=True)
SCORED = [dataclasses.replace(g, ends=True) for g in GROUPS]


def conversations(groups):
    """(row, slot, all tokens) of every response."""
    return [(g.row, s.slot, [*g.prompt, *s.tokens]) for g in groups for s in g.segments]


def score(config, weights, batch, **chunks):
    return response_scores(Decoder(config, weights, dtype="float32"), batch, **chunks)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["llama2", "mistral", "mistral_window", "qwen2", "qwen3", "gemma3", "olmo3", "phi3"])
def test_equals_the_classifiers_of_transformers(variant, tmp_path):
    """Grouped queries everywhere; in one batch of transformers, padded to the right."""
    theirs = models.torch_classifier(variant, pad_token_id=0)
    model = load_model(models.save(theirs, tmp_path / "reward"), dtype="float32", head="score")
    rng = np.random.default_rng(1)
    draw = lambda n: rng.integers(1, 64, n).astype(np.int32)  # noqa: E731
    groups = []
    for row, (prompt, lengths) in enumerate([(9, [3, 1, 6]), (1, [4]), (7, [8, 5])]):
        segments = tuple(Segment(draw(n), k) for k, n in enumerate(lengths))
        groups.append(TokenGroup(row, draw(prompt), segments, len(lengths), ends=True))
    rows = conversations(groups)
    padded = torch.zeros((len(rows), max(len(t) for *_, t in rows)), dtype=torch.long)
    for at, (*_, whole) in enumerate(rows):
        padded[at, : len(whole)] = torch.tensor(whole)
    with torch.no_grad():
        expected = theirs(padded, attention_mask=padded != 0).logits[:, 0].numpy()
    assert np.ptp(expected) > 0.1
    for layout, chunks in ((RowLayout(pack=True), {}), (RowLayout(pack=False, align="right"), {"rows_per_chunk": 2})):
        batch = pack_groups(groups, shards=1, groups_per_shard=len(groups), layout=layout)
        ours = by_row(batch, response_scores(model, batch, **chunks))
        np.testing.assert_allclose([ours[row, slot] for row, slot, _ in rows], expected, atol=1e-4)


def _slow(config, groups, weights, signs):
    """The plain model, one conversation at a time, its last state times the head; summed with `signs` `[rows, K]`."""
    model, total = Decoder(config, weights, dtype="float32"), 0.0
    for row, slot, whole in conversations(groups):
        inputs = jnp.asarray(whole)[None, None]
        positions = jnp.arange(len(whole))[None, None]
        seen = visibility("xla", Tokens(positions, jnp.ones_like(positions)), config.sliding_window)
        hidden = model.run(Inputs(inputs, positions, seen)).hidden
        total += signs[row, slot] * (hidden[0, 0, -1] @ weights["score"][:, 0])
    return total


@pytest.mark.slow
@pytest.mark.parametrize("config", [REWARD, WINDOW], ids=["grouped-query", "window-tied"])
def test_values_and_gradients_equal_those_of_scoring_alone(config):
    weights = big_weights(config)
    signs = np.sin(np.arange(16.0)).reshape(4, 4)
    expected = jax.jit(jax.value_and_grad(partial(_slow, config, SCORED)))(weights, signs)
    for pack, size in ((True, None), (False, None), (False, 3)):
        batch = pack_groups(SCORED, shards=1, groups_per_shard=4, layout=RowLayout(pack=pack))
        own = signs[batch.rows] * batch.mask
        ours = jax.jit(
            jax.value_and_grad(lambda w, b=batch, o=own, c=size: jnp.sum(score(config, w, b, rows_per_chunk=c) * o))
        )(weights)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), ours, expected)


def test_the_same_under_jit_pmap_shard_map_and_a_mesh():
    weights = big_weights(REWARD)
    groups = [dataclasses.replace(group(i, 3 + i % 3, [2, 4]), ends=True) for i in range(8)]
    batch = pack_groups(groups, shards=8, groups_per_shard=1, layout=RowLayout(pack=True))
    f = partial(score, REWARD)
    expected = jax.jit(f)(weights, batch)
    for out in on_eight_devices(f, REWARD, weights, batch):
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_the_last_token_decides_and_padding_does_not():
    weights = big_weights(REWARD)
    one = tokens(4)
    other = np.append(one[:-1], (one[-1] + 1) % REWARD.vocab_size).astype(np.int32)
    a, b = (make_groups([[3, 1]], [[one, x]], ends=True) for x in (other, tokens(9)))
    a, b = (np.asarray(jax.jit(partial(score, REWARD))(weights, batch)) for batch in (a, b))
    assert abs(a[0, 0] - a[0, 1]) > 1e-3
    np.testing.assert_allclose(a[0, 0], b[0, 0], rtol=1e-5)


def test_a_batch_for_scores_counts_the_same_tokens():
    prompts, responses = [tokens(4), tokens(1)], [[tokens(3), tokens(5)], [tokens(2)]]
    ends, targets = (make_groups(prompts, responses, ends=e) for e in (True, False))
    assert useful_tokens(ends) == useful_tokens(targets) == (4 + 3) + (4 + 5) + (1 + 2)
    np.testing.assert_array_equal(ends.lengths, targets.lengths)
    assert np.count_nonzero(ends.slots >= 0) == 3
    last = ends.tokens[ends.slots >= 0]
    assert sorted(last) == sorted(r[-1] for rs in responses for r in rs)


def test_mixing_up_batches_or_models_is_an_error():
    ends, targets = (make_groups([[1]], [[[2], [3, 4]]], ends=e) for e in (True, False))
    with pytest.raises(ValueError, match="laid out for log-probs"):
        score(REWARD, big_weights(REWARD), targets)
    with pytest.raises(ValueError, match="laid out for scores"):
        response_logps(Decoder(BASE, big_weights(BASE), dtype="float32"), ends)
    with pytest.raises(ValueError, match="language model"):
        score(BASE, big_weights(BASE), ends)
    with pytest.raises(ValueError, match="reward model"):
        response_logps(Decoder(REWARD, big_weights(REWARD), dtype="float32"), targets)
    with pytest.raises(ValueError, match="cannot share a batch"):
        pack_groups([GROUPS[0], SCORED[1]], shards=1, groups_per_shard=2, layout=RowLayout())
    with pytest.raises(ValueError, match="no score of its own"):
        dataclasses.replace(BELIEFS[0], ends=True)


def test_models_that_are_no_reward_models(tmp_path):
    causal = models.save(models.torch_model("llama2"), tmp_path / "causal")
    with pytest.raises(UserError, match="LlamaForCausalLM is not supported here: it is a language model"):
        load_model(causal, head="score")
    two = models.save(models.torch_classifier("llama2", num_labels=2), tmp_path / "two")
    with pytest.raises(UserError, match="score head has 2 outputs; a reward model has one"):
        load_model(two, head="score")
    assert transformers.AutoConfig.from_pretrained(two).num_labels == 2
