"""Shapes of well-known models by name, so that a step can be planned where nothing can be downloaded.

Those of Qwen, Gemma, Mixtral and GPT-OSS are written from memory, and were not compared with the published `config.json`.
"""

from __future__ import annotations

import math

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


def _qwen(width: int, mlp: int, layers: int, heads: int, kv_heads: int, **more) -> ModelConfig:
    usual = {"vocab_size": 151936, "rope_theta": 1e6, "norm_eps": 1e-6, "max_length": 32768}
    return _llama(width, mlp, layers, heads, kv_heads, **usual | more)


def _gemma(width: int, mlp: int, layers: int, heads: int, kv_heads: int, scaled_by: int = 256, **more) -> ModelConfig:
    """Four norms a layer, and a window in the layers that `full_every` leaves."""
    usual = {"vocab_size": 262144, "head_size": 256, "norm_eps": 1e-6, "tied_embeddings": True, "activation": "gelu_tanh"}
    usual |= {"norms": "both", "norm_offset": 1.0, "norm_float32": True, "embed_scale": width**0.5}
    given = usual | more
    every = given.pop("full_every")
    if scaled_by != given["head_size"]:
        given["attention_scale"] = scaled_by**-0.5
    windows = tuple((i + 1) % every != 0 for i in range(layers))
    return _llama(width, mlp, layers, heads, kv_heads, layer_windows=windows, **given)


_QWEN2 = {"qkv_bias": True}
_QWEN2_SMALL = {**_QWEN2, "tied_embeddings": True}
_QWEN2_LARGE = {**_QWEN2, "vocab_size": 152064}
_QWEN3 = {"qk_norm": True, "max_length": 40960}
_QWEN3_SMALL = {**_QWEN3, "tied_embeddings": True}
# The width is that of one expert.
_QWEN3_MOE = {**_QWEN3, "experts": 128, "active_experts": 8}
_MIXTRAL = {"vocab_size": 32000, "rope_theta": 1e6, "max_length": 32768, "experts": 8, "active_experts": 2}
_GEMMA2 = {"vocab_size": 256000, "rope_theta": 1e4, "sliding_window": 4096, "full_every": 2}
_GEMMA2 |= {"attention_softcap": 50.0, "logit_softcap": 30.0}
_GEMMA3 = {"qk_norm": True, "rope_theta": 1e6, "local_rope_theta": 1e4, "full_every": 6}
_GEMMA3_SMALL = {**_GEMMA3, "sliding_window": 512, "max_length": 32768}
_GEMMA3_LARGE = {**_GEMMA3, "sliding_window": 1024, "max_length": 131072, "rope_scaling": RopeScaling("linear", 8.0)}
_GEMMA3_LARGE |= {"vocab_size": 262208}

_GPT_OSS = {"qkv_bias": True, "o_bias": True, "sinks": True, "expert_biases": True, "activation": "clamped_swiglu"}
_GPT_OSS |= {"norm_float32": True, "sliding_window": 128, "active_experts": 4, "head_size": 64, "vocab_size": 201088}
_YARN = {"original_length": 4096, "attention_factor": 0.1 * math.log(32) + 1, "truncate": False}
_GPT_OSS |= {"rope_theta": 150000.0, "max_length": 131072, "rope_scaling": RopeScaling("yarn", 32.0, **_YARN)}


def _gpt_oss(layers: int, experts: int) -> ModelConfig:
    """Windows in every other layer, from the first; the width of an expert is the model's."""
    windows = tuple(i % 2 == 0 for i in range(layers))
    return _llama(2880, 2880, layers, 64, 8, experts=experts, layer_windows=windows, **_GPT_OSS)


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
    "qwen2.5-0.5b": _qwen(896, 4864, 24, 14, 2, head_size=64, **_QWEN2_SMALL),
    "qwen2.5-1.5b": _qwen(1536, 8960, 28, 12, 2, **_QWEN2_SMALL),
    "qwen2.5-7b": _qwen(3584, 18944, 28, 28, 4, **_QWEN2_LARGE),
    "qwen2.5-32b": _qwen(5120, 27648, 64, 40, 8, **_QWEN2_LARGE),
    "qwen2.5-72b": _qwen(8192, 29568, 80, 64, 8, **_QWEN2_LARGE),
    "qwen3-0.6b": _qwen(1024, 3072, 28, 16, 8, **_QWEN3_SMALL),
    "qwen3-1.7b": _qwen(2048, 6144, 28, 16, 8, **_QWEN3_SMALL),
    "qwen3-4b": _qwen(2560, 9728, 36, 32, 8, **_QWEN3_SMALL),
    "qwen3-8b": _qwen(4096, 12288, 36, 32, 8, **_QWEN3),
    "qwen3-14b": _qwen(5120, 17408, 40, 40, 8, **_QWEN3),
    "qwen3-32b": _qwen(5120, 25600, 64, 64, 8, **_QWEN3),
    "qwen3-30b-a3b": _qwen(2048, 768, 48, 32, 4, **_QWEN3_MOE),
    "qwen3-235b-a22b": _qwen(4096, 1536, 94, 64, 4, **_QWEN3_MOE),
    "mixtral-8x7b": _llama(4096, 14336, 32, 32, 8, **_MIXTRAL),
    "mixtral-8x22b": _llama(6144, 16384, 56, 48, 8, **_MIXTRAL | {"vocab_size": 32768, "max_length": 65536}),
    "gemma-2-2b": _gemma(2304, 9216, 26, 8, 4, **_GEMMA2),
    "gemma-2-9b": _gemma(3584, 14336, 42, 16, 8, **_GEMMA2),
    "gemma-2-27b": _gemma(4608, 36864, 46, 32, 16, 144, head_size=128, **_GEMMA2),
    "gemma-3-270m": _gemma(640, 2048, 18, 4, 1, **_GEMMA3_SMALL),
    "gemma-3-1b": _gemma(1152, 6912, 26, 4, 1, **_GEMMA3_SMALL),
    "gemma-3-4b": _gemma(2560, 10240, 34, 8, 4, **_GEMMA3_LARGE),
    "gemma-3-12b": _gemma(3840, 15360, 48, 16, 8, **_GEMMA3_LARGE),
    "gemma-3-27b": _gemma(5376, 21504, 62, 32, 16, 168, head_size=128, **_GEMMA3_LARGE),
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
}


def known_model(name: str) -> ModelConfig:
    """The shape of a model by its name, such as `llama-3-8b`.

    Raises:
      UserError: no shape of this name.
    """
    if name.lower() not in KNOWN:
        raise UserError(f"--model: {name!r} is none of the known shapes; {suggest(name, KNOWN)}there are {', '.join(KNOWN)}")
    return KNOWN[name.lower()]
