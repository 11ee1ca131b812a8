"""Tiny random LLaMA, Mistral and Qwen models of transformers, one for each variant that import must get right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers

LENGTH = 24
_SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # With heads of 16: one frequency is kept, one lies on the ramp, the rest are divided.
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "llama1": ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-6}),
    "llama2": ("llama", {}),
    "llama3": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "llama3.1": ("llama", {"head_dim": 16, "rope_parameters": _LLAMA3}),
    "llama3.2": ("llama", {"head_dim": 16, "rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "odd_heads": ("llama", {"head_dim": 12}),
    "eps": ("llama", {"rms_norm_eps": 0.03}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "mistral_window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "qwen3": ("qwen3", {"head_dim": 16}),
}
_CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


_CLASSIFIERS = {
    "llama": transformers.LlamaForSequenceClassification,
    "mistral": transformers.MistralForSequenceClassification,
    "qwen2": transformers.Qwen2ForSequenceClassification,
    "qwen3": transformers.Qwen3ForSequenceClassification,
}


def torch_classifier(variant: str, *, num_labels: int = 1, **changes):
    """A sequence classifier of transformers with random weights: with one label, a reward model."""
    return torch_model(variant, classes=_CLASSIFIERS, num_labels=num_labels, **changes)


def torch_model(variant: str, dtype=torch.float32, *, classes=None, **changes):
    """A model of transformers with random weights, norms included, large enough that every part shows in the logits."""
    family, fields = VARIANTS[variant]
    config_class, model_class = _CLASSES[family]
    model_class = (classes or {}).get(family, model_class)
    config = config_class(**{**_SIZE, **fields, **changes}, attn_implementation="eager")
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else 0.2 * noise)
    return model.to(dtype)


def save(model, folder: Path, **options) -> Path:
    """Saves with transformers' own writer."""
    model.save_pretrained(folder, safe_serialization=True, **options)
    return folder


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, _SIZE["vocab_size"], (2, LENGTH)).astype(np.int32)


def as_transformers_4(folder: Path, type_key: str = "rope_type") -> None:
    """Rewrites config.json the way transformers 4 wrote it: `rope_theta` and `rope_scaling`, `torch_dtype`."""
    edit_config(folder, _old_rope(json.loads((folder / "config.json").read_text())["rope_parameters"], type_key))


def _old_rope(params: dict, type_key: str) -> dict:
    params = dict(params)
    theta, kind = params.pop("rope_theta"), params.pop("rope_type")
    scaling = None if kind == "default" else {type_key: kind, **params}
    return {
        "rope_parameters": ...,
        "dtype": ...,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "torch_dtype": "float32",
    }


def edit_config(folder: Path, changes: dict) -> None:
    """Changes fields of config.json; `...` removes one."""
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
