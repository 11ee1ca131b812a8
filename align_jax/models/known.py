"""Shapes of well-known models by name, so that a step can be planned where nothing can be downloaded."""

from __future__ import annotations

from align_jax.errors import UserError
from align_jax.models.config import ModelConfig, RopeScaling
from align_jax.registry import suggest

_LLAMA_3_1 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
_LLAMA_3_2 = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)


def _llama(width: int, mlp: int, layers: int, heads: int, kv_heads: int, **more) -> ModelConfig:
    usual = {"vocab_size": 128256, "head_size": 128, "rope_theta": 500000.0, "max_length": 8192}
    return ModelConfig(width=width, mlp_width=mlp, layers=layers, heads=heads, kv_heads=kv_heads, **usual | more)


_LONG = {"rope_scaling": _LLAMA_3_1, "max_length": 131072}
_SMALL = {"rope_scaling": _LLAMA_3_2, "max_length": 131072, "tied_embeddings": True}
_LLAMA_2 = {"vocab_size": 32000, "rope_theta": 10000.0, "max_length": 4096}
_MISTRAL = {"vocab_size": 32000, "rope_theta": 10000.0, "max_length": 32768}

# From the `config.json` of each.
KNOWN = {
    "llama-3-8b": _llama(4096, 14336, 32, 32, 8),
    "llama-3-70b": _llama(8192, 28672, 80, 64, 8),
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, 8, **_LONG),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64, 8, **_LONG),
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, 8, head_size=64, **_SMALL),
    "llama-3.2-3b": _llama(3072, 8192, 28, 24, 8, **_SMALL),
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32, **_LLAMA_2),
    "llama-2-13b": _llama(5120, 13824, 40, 40, 40, **_LLAMA_2),
    "llama-2-70b": _llama(8192, 28672, 80, 64, 8, **_LLAMA_2),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, sliding_window=4096, **_MISTRAL),
    "tinyllama-1.1b": _llama(2048, 5632, 22, 32, 4, head_size=64, **_LLAMA_2 | {"max_length": 2048}),
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, head_size=64, vocab_size=49152, rope_theta=100000.0, tied_embeddings=True),
}


def known_model(name: str) -> ModelConfig:
    """The shape of a model by its name, such as `llama-3-8b`.

    Raises:
      UserError: no shape of this name.
    """
    if name.lower() not in KNOWN:
        raise UserError(f"--model: {name!r} is none of the known shapes; {suggest(name, KNOWN)}there are {', '.join(KNOWN)}")
    return KNOWN[name.lower()]
