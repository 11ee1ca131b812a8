"""The imported model computes what transformers computes: logits and gradients, on every variant."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from align_jax.hf import load_config, load_model, load_weights
from align_jax.hf.names import tensors
from align_jax.models import Decoder
from tests.hf import models


def _logits_and_grads(config, weights, tokens, cotangent):
    """Logits, and the gradient of `sum(logits * cotangent)` with respect to the weights."""

    def loss(weights):
        logits = Decoder(config, weights, dtype=jnp.float32)(tokens)
        return jnp.sum(logits * cotangent), logits

    return jax.jit(jax.grad(loss, has_aux=True))(weights)[::-1]


@pytest.mark.parametrize("type_key", ["rope_type", "type"])
@pytest.mark.parametrize("variant", models.VARIANTS)
def test_config_is_read_alike_in_both_dialects(variant, type_key, tmp_path):
    model = models.torch_model(variant)
    model.config.save_pretrained(tmp_path)
    new, _ = _config(tmp_path)
    models.as_transformers_4(tmp_path, type_key)
    assert _config(tmp_path)[0] == new


def _config(folder):
    models.edit_config(folder, {"architectures": ...})
    return load_config(folder)


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_logits_and_gradients_equal_transformers(variant, tmp_path):
    theirs = models.torch_model(variant)
    models.save(theirs, tmp_path)
    config, _ = load_config(tmp_path)
    tokens = models.tokens()
    cotangent = np.random.default_rng(1).standard_normal((*tokens.shape, config.vocab_size), dtype=np.float32)

    expected = theirs(torch.tensor(tokens)).logits
    (expected * torch.tensor(cotangent)).sum().backward()
    logits, grads = _logits_and_grads(config, load_weights(tmp_path, config), tokens, cotangent)

    expected = expected.detach().numpy()
    assert np.abs(expected).max() > 1.0
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    stored, grads, seen = models.stored_gradients(theirs), flatten_dict(grads), set()
    for tensor in tensors(config):
        ours = grads[tensor.weight.path][tensor.place]
        seen.add(tensor.name)
        grad = tensor.part_of(stored[tensor.name])
        scale = np.abs(grad).max()
        assert scale > 0
        np.testing.assert_allclose(
            tensor.weight.stored.layout.to_theirs(ours), grad, rtol=0, atol=1e-4 * scale, err_msg=tensor.name
        )
    assert seen == stored.keys()


def test_window_changes_the_logits(tmp_path):
    models.save(models.torch_model("mistral_window"), tmp_path)
    tokens = models.tokens()
    windowed = jax.jit(load_model(tmp_path, dtype="float32"))(tokens)
    models.edit_config(tmp_path, {"sliding_window": None})
    whole = jax.jit(load_model(tmp_path, dtype="float32"))(tokens)
    np.testing.assert_allclose(windowed[:, :5], whole[:, :5], atol=1e-5)
    assert np.abs(windowed[:, 5:] - whole[:, 5:]).max() > 0.1


_STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw "
    "a big, red ball. She wanted to play with it, but it was too high."
)


@pytest.mark.skipif("ALIGN_JAX_DATA" not in os.environ, reason="ALIGN_JAX_DATA (the folder of real data) is not set")
def test_stories260k_tells_its_story():
    from transformers import AutoTokenizer

    folder = Path(os.environ["ALIGN_JAX_DATA"]) / "stories260k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_model(folder, dtype="float32")
    ids = [tokenizer.bos_token_id, *tokenizer("Once upon a time", add_special_tokens=False).input_ids]
    start, length = len(ids), len(tokenizer(_STORY, add_special_tokens=False).input_ids) + 1
    buffer = jnp.zeros((1, length), jnp.int32).at[0, :start].set(jnp.array(ids))

    @jax.jit
    def tell(buffer):
        def step(i, buffer):
            return buffer.at[0, i].set(jnp.argmax(model(buffer)[0, i - 1]).astype(jnp.int32))

        return jax.lax.fori_loop(start, length, step, buffer)

    assert tokenizer.decode(np.asarray(tell(buffer))[0], skip_special_tokens=True).strip() == _STORY
