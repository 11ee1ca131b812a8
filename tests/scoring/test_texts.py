"""Texts where token lists are taken."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import align_jax
from align_jax.data import make_groups
from align_jax.models import Decoder, ModelConfig
from tests.data.toys import CHAT, char_tokenizer
from tests.models.test_decoder import big_weights

CONFIG = ModelConfig(vocab_size=110, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4)
PROMPTS, RESPONSES = ["2+2=", "hi"], [["4", "five"], ["yo"]]


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, big_weights(CONFIG), dtype="float32", attention="xla")


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_texts_are_their_tokens_between_bos_and_eos(model):
    tokenizer = char_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    prompts = [[bos, *ids(tokenizer, prompt)] for prompt in PROMPTS]
    responses = [[[*ids(tokenizer, text), eos] for text in texts] for texts in RESPONSES]
    expected = align_jax.response_logps(model, make_groups(prompts, responses))
    found = align_jax.response_logps(model, PROMPTS, RESPONSES, tokenizer=tokenizer)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(align_jax.response_logps(model, prompts, responses), expected)


def test_a_chat_tokenizer_renders_plain_prompts_and_conversations_alike(model):
    tokenizer = char_tokenizer(chat=CHAT)
    talk = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    plain, chat = (make_groups(prompts, RESPONSES, tokenizer=tokenizer) for prompts in (PROMPTS, talk))
    assert jax.tree.all(jax.tree.map(np.array_equal, plain, chat))
    assert len(ids(tokenizer, "<|user|>2+2=<|assistant|>")) == int((plain.prompt_segments[0, 0] > 0).sum())  # BOS, but the last


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_per_token_is_the_sum_taken_apart(model, chunk):
    tokenizer = char_tokenizer()
    batch = make_groups(PROMPTS, RESPONSES, tokenizer=tokenizer)
    each = np.asarray(align_jax.response_logps(model, batch, per_token=True, rows_per_chunk=chunk))
    np.testing.assert_allclose(each.sum(-1), align_jax.response_logps(model, batch), rtol=1e-5)
    counts = np.asarray(batch.lengths)
    behind = np.arange(each.shape[-1]) >= counts[..., None]
    assert (each[behind] == 0).all() and (each[~behind] < 0).all()
    # against whole sequences: token by token
    whole = [tokenizer.bos_token_id, *ids(tokenizer, "2+2=five"), tokenizer.eos_token_id]
    logits = np.asarray(model(np.asarray([whole])))[0].astype(np.float64)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [logps[t - 1, whole[t]] for t in range(5, len(whole))]
    np.testing.assert_allclose(each[0, 1, : counts[0, 1]], expected, rtol=1e-4)


def test_per_token_of_packed_rows(model):
    from align_jax.data import RowLayout, Segment, TokenGroup, pack_groups

    rng = np.random.default_rng(0)
    token = lambda n: rng.integers(3, 100, n).astype(np.int32)  # noqa: E731
    groups = [TokenGroup(g, token(4 + g), tuple(Segment(token(2 + k), k) for k in range(3)), 3, {}) for g in range(3)]
    packed = pack_groups(groups, shards=1, groups_per_shard=3, layout=RowLayout())
    single = pack_groups(groups, shards=1, groups_per_shard=3, layout=RowLayout(pack=False))
    values = [np.asarray(align_jax.response_logps(model, batch, per_token=True)) for batch in (packed, single)]
    length = min(v.shape[-1] for v in values)
    assert not any(v[..., length:].any() for v in values)
    np.testing.assert_allclose(values[0][..., :length], values[1][..., :length], rtol=1e-4, atol=1e-6)


def test_errors(model):
    with pytest.raises(ValueError, match="give tokenizer="):
        align_jax.response_logps(model, PROMPTS, RESPONSES)
    with pytest.raises(ValueError, match="give the responses"):
        align_jax.response_logps(model, PROMPTS)
    with pytest.raises(ValueError, match="group 0: responses are a list of texts"):
        align_jax.response_logps(model, PROMPTS, ["4", "yo"], tokenizer=char_tokenizer())
    with pytest.raises(ValueError, match="leave `responses` and `tokenizer` out"):
        align_jax.response_logps(model, make_groups(PROMPTS, RESPONSES, tokenizer=char_tokenizer()), tokenizer=1)
    with pytest.raises(align_jax.UserError, match=r"group 1: field .prompt\[0\].: a message needs text"):
        align_jax.response_logps(model, ["a", [{"role": "user"}]], RESPONSES, tokenizer=char_tokenizer())
