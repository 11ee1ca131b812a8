"""Ids that the tokenizer does not have are never sampled; all else is as it was."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
from scipy import stats
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import align_jax
from align_jax.errors import UserError
from align_jax.generation import Sampling, absent_ids, generate, generate_beliefs
from align_jax.generation.engine import _runs
from align_jax.models import Decoder, weight_shardings
from align_jax.parallel.mesh import make_mesh
from tests.data.toys import char_tokenizer
from tests.generation.reference import filtered_probs, tiny_model

PROMPT = [3, 4, 5]
# Most likely first: what greedy decoding would take is among them.
NEVER = [5, 7, 20, 21, 22, *range(50, 61)]


@pytest.fixture(scope="module")
def model():
    return tiny_model(scale=0.1)


def last_logits(model, tokens):
    padded = np.zeros((1, 16), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_forward(model.weights(), padded, model.config))[0, len(tokens) - 1]


@partial(jax.jit, static_argnums=2)
def _forward(weights, tokens, config):
    return Decoder(config, weights, dtype="float32")(tokens)


def allowed(logits):
    return np.where(np.isin(np.arange(len(logits)), NEVER), -np.inf, logits)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}, {"min_p": 0.2}], ids=str)
def test_draws_follow_the_distribution_of_what_is_left(model, options):
    samples = generate(model, [PROMPT], samples=4000, max_new_tokens=1, sampling=Sampling(**options), never=NEVER, seed=1)[0]
    counts = np.bincount([s.tokens[0] for s in samples], minlength=61)
    logits = last_logits(model, PROMPT)
    expected = filtered_probs(allowed(logits), **options) * 4000
    assert (counts[expected == 0] == 0).all() and (counts[NEVER] == 0).all()
    common = expected >= 5
    rest = ([counts[~common].sum()], [expected[~common].sum()]) if expected[~common].sum() > 5 else ([], [])
    observed, wanted = [*counts[common], *rest[0]], np.asarray([*expected[common], *rest[1]])
    assert stats.chisquare(observed, wanted / wanted.sum() * sum(observed)).pvalue > 1e-4
    # The log-probs are the model's own.
    logps = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose([s.logp for s in samples[:50]], logps[[s.tokens[0] for s in samples[:50]]], rtol=1e-4)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_takes_the_best_of_what_is_left(model, penalty):
    sampling = Sampling(temperature=0, repetition_penalty=penalty)
    plain, masked = (generate(model, [PROMPT], max_new_tokens=12, sampling=sampling, never=n)[0][0] for n in ((), NEVER))
    tokens = list(PROMPT)
    for _ in range(12):
        logits = last_logits(model, tokens)
        seen = np.isin(np.arange(61), tokens)
        if penalty != 1:
            logits = np.where(seen, np.where(logits < 0, logits * penalty, logits / penalty), logits)
        tokens.append(int(allowed(logits).argmax()))
    assert masked.tokens.tolist() == tokens[3:] != plain.tokens.tolist()


def test_what_was_not_masked_is_drawn_as_before(model):
    options = {"samples": 6, "max_new_tokens": 10, "seed": 3}
    plain = generate(model, [PROMPT], **options)[0]
    used = {int(t) for s in plain for t in s.tokens}
    others = [t for t in range(61) if t not in used]
    assert [s.tokens.tolist() for s in generate(model, [PROMPT], never=[], **options)[0]] == [s.tokens.tolist() for s in plain]
    assert others and all(set(s.tokens.tolist()) <= used for s in generate(model, [PROMPT], never=others, **options)[0])


def test_ends_of_texts_stay_and_something_must(model):
    ended = generate(model, [PROMPT], samples=40, max_new_tokens=30, eos_ids=[7], never=[*range(7), 7, *range(9, 61)], seed=0)[
        0
    ]
    assert {int(t) for s in ended for t in s.tokens} == {7, 8} and any(s.finish_reason == "eos" for s in ended)
    with pytest.raises(UserError, match="all 61 tokens of the model's vocabulary are excluded"):
        generate(model, [PROMPT], max_new_tokens=1, never=range(100))


def test_ids_are_kept_as_runs(model):
    assert _runs(model, [60, 3, 4, 4, 9, 99, -1, 0], ()) == ((0, 1), (3, 5), (9, 10), (60, 61))
    assert _runs(model, range(10, 61), (60, 30)) == ((10, 30), (31, 60)) and _runs(model, [], ()) == ()


def test_texts_of_beliefs_have_none(model):
    results = generate_beliefs(model, [PROMPT], [[[9], [50]]], samples=50, max_new_tokens=4, never=NEVER)
    drawn = {int(t) for s in results[0].samples for t in s.sample.tokens}
    assert not drawn & set(NEVER) and {s.belief for s in results[0].samples} == {0, 1}  # a belief is not drawn token by token


@pytest.mark.slow
def test_a_vocabulary_over_several_devices(model):
    small = tiny_model(vocab_size=64, scale=0.1)
    options = {"samples": 8, "max_new_tokens": 8, "never": [*range(40, 64), 2], "seed": 5}
    plain = generate(small, [PROMPT], **options)[0]
    mesh = make_mesh(2, 2, 2)
    placed = jax.device_put(small.weights(), weight_shardings(small.config, mesh))
    sharded = generate(Decoder(small.config, placed, dtype=small.dtype), [PROMPT], mesh=mesh, **options)[0]
    assert [s.tokens.tolist() for s in sharded] == [s.tokens.tolist() for s in plain]


def test_absent_ids_are_holes_and_padding():
    core = Tokenizer(models.WordLevel({"a": 0, "b": 2, "<unk>": 3, "c": 6}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert absent_ids(tokenizer, 10) == (1, 4, 5, 7, 8, 9) and absent_ids(tokenizer, 3) == (1,)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    assert set(tokenizer.get_vocab().values()) & set(absent_ids(tokenizer, 10)) == set()
    assert absent_ids(char_tokenizer(), len(char_tokenizer())) == ()


def test_a_padded_model_never_says_what_its_tokenizer_cannot(monkeypatch):
    tokenizer, drawn = char_tokenizer(), []

    def kept(*args, **options):
        drawn.append(generate(*args, **options))
        return drawn[-1]

    monkeypatch.setattr("align_jax.generation.generate", kept)
    model = tiny_model(vocab_size=len(tokenizer) + 90, scale=0.05)
    align_jax.generate(model, ["ab"], tokenizer=tokenizer, samples=20, max_new_tokens=12, seed=1)
    plain = generate(model, [PROMPT], samples=20, max_new_tokens=12)
    most = [max(int(s.tokens.max()) for s in results[0]) for results in (drawn[0], plain)]
    assert most[0] < len(tokenizer) <= most[1]
