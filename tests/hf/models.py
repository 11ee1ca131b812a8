"""Tiny random models of transformers, one for each variant of each family that import must get right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers

from align_jax.hf.families import FAMILIES

LENGTH = 24
_SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
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
# Rope scalings, with an original context of less than LENGTH tokens.
_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "rope_theta": 10000.0}
_SHORT = {"max_position_embeddings": 16}
VARIANTS |= {
    "dynamic": ("llama", {**_SHORT, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}),
    "yarn": ("llama", {"head_dim": 16, "rope_parameters": _YARN}),
    "yarn_mscale": (
        "llama",
        {"rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 4.0, "truncate": False}},
    ),
    "mistral_nemo": (
        "mistral",
        {"sliding_window": None, "head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen2_mixed": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "gemma2": (
        "gemma2",
        {
            **{"head_dim": 16, "num_hidden_layers": 3, "sliding_window": 5, "query_pre_attn_scalar": 24},
            **{"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **{"head_dim": 16, "num_hidden_layers": 3, "sliding_window": 5, "query_pre_attn_scalar": 24},
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
}
_LAYER_TYPES = ["full_attention", "sliding_attention", "sliding_attention"]
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 2.0, 4.0],
    "original_max_position_embeddings": 16,
}
VARIANTS |= {
    "ministral": (
        "ministral",
        {"head_dim": 16, "num_hidden_layers": 3, "sliding_window": 5, "layer_types": _LAYER_TYPES},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 3, "no_rope_layer_interval": 2, "tie_word_embeddings": True}),
    "granite": (
        "granite",
        {"embedding_multiplier": 6.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0},
    ),
    "olmo2": ("olmo2", {}),
    "olmo3": (
        "olmo3",
        {
            **{"num_hidden_layers": 3, "sliding_window": 5, "layer_types": _LAYER_TYPES},
            "rope_scaling": {**_YARN, "attention_factor": 1.2},
        },
    ),
    "phi3": ("phi3", {"sliding_window": 5}),
    "phi4_mini": ("phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 16}),
    "phi4_mini_short": (
        "phi3",
        {
            "rope_parameters": {**_LONGROPE, "original_max_position_embeddings": 64},
            "original_max_position_embeddings": 64,
        },
    ),
}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "head_dim": 16}
VARIANTS |= {
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral_window": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 5}),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "norm_topk_prob": True}),
    "qwen3_moe_not_normed": ("qwen3_moe", _EXPERTS),
    "seed_oss": ("seed_oss", {"head_dim": 16}),
    "seed_oss_without_bias": ("seed_oss", {"head_dim": 16, "attention_bias": False}),
}
# An original context and a window of less than LENGTH tokens; no end of the ramp of yarn on a whole dimension.
_OSS_YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "truncate": False, "beta_fast": 4.0}
_OSS_YARN |= {"beta_slow": 0.5, "original_max_position_embeddings": 8}
VARIANTS |= {
    "gpt_oss": (
        "gpt_oss",
        {
            **{"num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 16, "num_hidden_layers": 3},
            **{"sliding_window": 5, "rope_parameters": _OSS_YARN},
        },
    ),
}
# One of each family with a piece of its own.
FAMILIES_WITH_PIECES = (
    *("qwen2", "qwen3", "gemma2", "gemma3", "smollm3", "granite", "olmo3", "phi4_mini_short"),
    *("mixtral", "qwen3_moe_not_normed", "gpt_oss"),
)


def torch_classifier(variant: str, *, num_labels: int = 1, **changes):
    """A sequence classifier of transformers with random weights: with one label, a reward model."""
    return torch_model(variant, head="score", num_labels=num_labels, **changes)


def torch_model(variant: str, dtype=torch.float32, *, head: str = "lm_head", **changes):
    """A model of transformers with random weights, norms included, large enough that every part shows in the logits."""
    family, fields = VARIANTS[variant]
    kind, auto = FAMILIES[family], transformers.AutoConfig.for_model
    config = auto(family, **{**_SIZE, **fields, **changes}, attn_implementation="eager")
    model = getattr(transformers, kind.architecture(head))(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 - kind.pieces.get("norm_offset", 0) + 0.2 * noise if parameter.ndim == 1 else 0.2 * noise)
        for name, parameter in model.named_parameters():
            if name.endswith("experts.gate_up_proj"):
                parameter *= 4 if family == "gpt_oss" else 1  # so that gates reach their bounds
    return model.to(dtype)


def stored_gradients(model) -> dict[str, np.ndarray]:
    """The gradients of a model's parameters under the names that a checkpoint gives them, an expert's by itself."""
    if model.config.model_type == "gpt_oss":
        return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    found, mixtral = {}, model.config.model_type == "mixtral"
    for name, parameter in model.named_parameters():
        grad, (module, _, last) = parameter.grad.numpy(), name.rpartition(".")
        if mixtral:
            name, module = (each.replace(".mlp.", ".block_sparse_moe.") for each in (name, module))
        if not module.endswith(".experts"):
            found[name] = grad
            continue
        parts = {"gate_up_proj": ("w1", "w3") if mixtral else ("gate_proj", "up_proj")}
        parts["down_proj"] = ("w2",) if mixtral else ("down_proj",)
        for expert, whole in enumerate(grad):
            for part, of_part in zip(parts[last], np.split(whole, len(parts[last])), strict=True):
                found[f"{module}.{expert}.{part}.weight"] = of_part
    return found


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
    local = params.get("sliding_attention", {}).get("rope_theta")
    params = dict(params.get("full_attention", params))
    theta, kind = params.pop("rope_theta"), params.pop("rope_type")
    scaling = None if kind == "default" else {type_key: kind, **params}
    return {
        **({} if local is None else {"rope_local_base_freq": local}),
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
