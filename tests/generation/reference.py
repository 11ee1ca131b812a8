"""The slow obvious way: filters by sorting in float64, and sampling one text at a time with the whole forward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.models import Decoder, ModelConfig, weight_shapes


def tiny_model(seed: int = 0, scale: float = 0.16, **changes) -> Decoder:
    """A random model, its weights so large that what it says depends on all it read."""
    shape = dict(vocab_size=61, width=32, mlp_width=48, layers=2, heads=4, kv_heads=2, head_size=8, max_length=256)
    config = ModelConfig(**{**shape, **changes})
    rng = np.random.default_rng(seed)

    def weight(path, shape):
        normal = rng.normal(size=shape).astype(np.float32)
        return jnp.asarray(1 + 0.1 * normal if path[-1].key.endswith("norm") else scale * normal)

    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    weights = jax.tree.map_with_path(weight, weight_shapes(config), is_leaf=is_shape)
    return Decoder(config, weights, dtype=jnp.float32)


def filtered_probs(logits: np.ndarray, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """The distribution over tokens `[V]` that the filters leave."""

    def softmax(x):
        e = np.exp(x - x.max())
        return e / e.sum()

    x = np.asarray(logits, np.float64) / temperature
    if top_k:
        x = np.where(x >= np.sort(x)[-top_k], x, -np.inf)
    if top_p < 1:
        p = softmax(x)
        above = np.array([p[p > value].sum() for value in p])
        x = np.where(above < top_p, x, -np.inf)
    if min_p:
        p = softmax(x)
        x = np.where(p >= min_p * p.max(), x, -np.inf)
    return softmax(x)


def greedy(model: Decoder, prompt: list[int], count: int, eos_ids=(), length: int = 96) -> list[int]:
    """Greedy decoding by a whole forward pass for every token, at one padded length."""
    forward = jax.jit(lambda tokens: model(tokens))
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        logits = forward(np.asarray([tokens + [0] * (length - len(tokens))]))[0, len(tokens) - 1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] in eos_ids:
            break
    return tokens[len(prompt) :]
