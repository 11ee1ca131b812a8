"""What config.json says of a model, family by family: functions that read it, and that write it. See docs/adding-a-model.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from align_jax.errors import UserError
from align_jax.hf.fields import boolean, integer, number, value
from align_jax.hf.rope import FULL, SLIDING
from align_jax.models import ModelConfig

Fields = dict[str, Any]
GPT_OSS_ONLY = {"attention_bias": True, "swiglu_alpha": 1.702, "swiglu_limit": 7.0}
SEED_OSS_ONLY = {"attention_out_bias": False, "mlp_bias": False}


def nothing(*_: Any) -> Fields:
    """No more fields."""
    return {}


# Windows: which layers have one, and how wide it is.


def _windows(types: list[str], window: int | None, where: str) -> Fields:
    """The values for layers of these types."""
    unknown = sorted(set(types) - {FULL, SLIDING})
    if unknown:
        raise UserError(f"{where}: layer_types names {unknown[0]!r}; supported: {FULL}, {SLIDING}")
    flags = tuple(kind == SLIDING for kind in types)
    if not any(flags):
        return {}
    if window is None:
        raise UserError(f"{where}: layer_types has layers of {SLIDING}, and sliding_window is null")
    wide = integer({"sliding_window": window}, "sliding_window", where)
    return {"sliding_window": wide, "layer_windows": flags}


def _types(hf: Fields, where: str, otherwise: Callable[[int], bool]) -> list[str]:
    """The type of each layer: what `layer_types` says, or `otherwise` of the layer's number."""
    layers = integer(hf, "num_hidden_layers", where)
    types = hf.get("layer_types") or [SLIDING if otherwise(i) else FULL for i in range(layers)]
    if len(types) != layers:
        raise UserError(f"{where}: layer_types has {len(types)} entries for {layers} layers")
    return list(types)


def patterned(absent: int | None, otherwise: Callable[[int, Fields], bool]) -> Callable[[Fields, str], Fields]:
    """A reader of windows in some layers."""

    def read(hf: Fields, where: str) -> Fields:
        return _windows(_types(hf, where, lambda i: otherwise(i, hf)), hf.get("sliding_window", absent), where)

    return read


def unmixed(hf: Fields, where: str) -> Fields:
    """No values: of a family whose layers are all alike."""
    if len(set(hf.get("layer_types") or ())) > 1:
        raise UserError(
            f"{where}: layer_types mixes {sorted(set(hf['layer_types']))}; all layers of this family must be of one type"
        )
    return {}


def everywhere(absent: int | None) -> Callable[[Fields, str], Fields]:
    """A reader of one window for all layers, or none."""

    def read(hf: Fields, where: str) -> Fields:
        unmixed(hf, where)
        window = hf.get("sliding_window", absent)
        return {} if window is None else {"sliding_window": integer({"sliding_window": window}, "sliding_window", where)}

    return read


def _layer_types(config: ModelConfig) -> list[str]:
    flags = config.layer_windows or (config.sliding_window is not None,) * config.layers
    return [SLIDING if flag else FULL for flag in flags]


def write_window(config: ModelConfig) -> Fields:
    """The window that all layers have, or none."""
    return {"sliding_window": config.sliding_window}


def write_types(config: ModelConfig) -> Fields:
    """The window, and which layers have it."""
    return {"sliding_window": config.sliding_window, "layer_types": _layer_types(config)}


# Qwen: a window is written that is not used, unless `use_sliding_window` says so, and then in the last layers.


def read_qwen(hf: Fields, where: str) -> Fields:
    """The window of the last layers, where it is used."""
    if not boolean(hf, "use_sliding_window", where):
        return {}
    window, first = hf.get("sliding_window", 4096), value(hf, "max_window_layers", where, 28)
    if window is None:
        return {}
    return _windows(_types(hf, where, lambda i: i >= first), window, where)


def write_qwen(config: ModelConfig) -> Fields:
    """The fields of a Qwen 2."""
    types = _layer_types(config)
    first = types.index(SLIDING) if SLIDING in types else config.layers
    mixed = {"layer_types": types} if len(set(types)) > 1 else {}
    return {
        "sliding_window": config.sliding_window,
        "use_sliding_window": config.sliding_window is not None,
        "max_window_layers": first,
        **mixed,
    }


def write_qwen3(config: ModelConfig) -> Fields:
    """The fields of a Qwen 3."""
    return {**write_qwen(config), "attention_bias": False}


# Gemma.


def gemma(config_absent: int | None, otherwise: Callable[[int, Fields], bool]) -> Callable[[Fields, str], Fields]:
    """A reader of the fields that all Gemmas have."""
    windows = patterned(config_absent, otherwise)

    def read(hf: Fields, where: str) -> Fields:
        if hf.get("use_bidirectional_attention"):
            raise UserError(f"{where}: use_bidirectional_attention is true; only causal attention is supported")
        scale, width = number(hf, "query_pre_attn_scalar", where, 256.0), integer(hf, "hidden_size", where)
        return {"attention_scale": scale**-0.5, "embed_scale": width**0.5, **windows(hf, where)}

    return read


def caps(hf: Fields, where: str) -> Fields:
    """The soft caps of attention and of the logits."""
    absent = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    found = {key: hf.get(key, usual) for key, usual in absent.items()}
    return {
        "attention_softcap": number(found, "attn_logit_softcapping", where, None),
        "logit_softcap": number(found, "final_logit_softcapping", where, None),
    }


def final_cap(hf: Fields, where: str) -> Fields:
    """The soft cap of the logits."""
    return {"logit_softcap": number(hf, "final_logit_softcapping", where, None)}


def write_gemma(config: ModelConfig) -> Fields:
    """The fields of a Gemma."""
    scale = config.head_size**-0.5 if config.attention_scale is None else config.attention_scale
    return {
        **write_types(config),
        "query_pre_attn_scalar": _whole(scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
    }


def _whole(x: float) -> float | int:
    """A whole number where x is one but for rounding."""
    return round(x) if abs(x - round(x)) < 1e-6 * abs(x) else x


def both(*readers: Callable) -> Callable[..., Fields]:
    """One reader of what several read."""

    def read(*args: Any) -> Fields:
        return {key: found for reader in readers for key, found in reader(*args).items()}

    return read


def but_every(count: int, key: str | None = None) -> Callable[[int, Fields], bool]:
    """Of a layer's number: whether it has a window, where every `count`-th has none; a field may say another number."""
    return lambda i, hf: (i + 1) % int((hf.get(key) if key else None) or count) != 0


# SmolLM3: `no_rope_layers` is 1 for a layer that does rotate.


def read_smollm3(hf: Fields, where: str) -> Fields:
    """Which layers rotate, and which have a window."""
    layers = integer(hf, "num_hidden_layers", where)
    every = integer(hf, "no_rope_layer_interval", where, 4)
    rotated = hf.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(layers)]
    if len(rotated) < layers:
        raise UserError(f"{where}: no_rope_layers has {len(rotated)} entries for {layers} layers")
    ropes = tuple(bool(flag) for flag in rotated[:layers])
    window = hf.get("sliding_window") if boolean(hf, "use_sliding_window", where) else None
    types = _types(hf, where, lambda i: window is not None and not ropes[i])
    return {"layer_ropes": ropes, **_windows(types, hf.get("sliding_window"), where)}


def write_smollm3(config: ModelConfig) -> Fields:
    """The fields of a SmolLM3."""
    ropes = config.layer_ropes or (True,) * config.layers
    return {
        **write_types(config),
        "use_sliding_window": config.sliding_window is not None,
        "no_rope_layers": [int(flag) for flag in ropes],
        "attention_bias": False,
        "mlp_bias": False,
    }


# Granite.


def read_granite(hf: Fields, where: str) -> Fields:
    """The four multipliers."""
    return {
        "embed_scale": number(hf, "embedding_multiplier", where, 1.0),
        "residual_scale": number(hf, "residual_multiplier", where, 1.0),
        "attention_scale": number(hf, "attention_multiplier", where, 1.0),
        "logit_divisor": number(hf, "logits_scaling", where, 1.0),
    }


def write_granite(config: ModelConfig) -> Fields:
    """The four multipliers, by their names there."""
    return {
        "embedding_multiplier": config.embed_scale,
        "residual_multiplier": config.residual_scale,
        "attention_multiplier": config.head_size**-0.5 if config.attention_scale is None else config.attention_scale,
        "logits_scaling": config.logit_divisor,
        "attention_bias": False,
        "mlp_bias": False,
    }


# Seed-OSS: `attention_bias` is of queries, keys and values alone.


def read_seed_oss(hf: Fields, where: str) -> Fields:
    """Whether queries, keys and values have biases."""
    return {"qkv_bias": boolean(hf, "attention_bias", where, True), **unmixed(hf, where)}


def write_seed_oss(config: ModelConfig) -> Fields:
    """The biases that there are."""
    return {"attention_bias": config.qkv_bias, **SEED_OSS_ONLY}


# Mixtures of experts.


def read_mixtral(hf: Fields, where: str) -> Fields:
    """The experts."""
    return {
        "experts": integer(hf, "num_local_experts", where, 8),
        "active_experts": integer(hf, "num_experts_per_tok", where, 2),
    }


def write_mixtral(config: ModelConfig) -> Fields:
    """The experts, by their names there."""
    return {"num_local_experts": config.experts, "num_experts_per_tok": config.active_experts}


def read_gpt_oss(hf: Fields, where: str) -> Fields:
    """The experts, by one of two names each, and the windows."""
    experts = integer(hf, "num_local_experts", where, hf.get("num_experts", 128))
    active = integer(hf, "num_experts_per_tok", where, hf.get("experts_per_token", 4))
    return {"experts": experts, "active_experts": active, **patterned(128, lambda i, _: i % 2 == 0)(hf, where)}


def write_gpt_oss(config: ModelConfig) -> Fields:
    """The experts and the windows, and what is the same in all of them."""
    return {**write_mixtral(config), **write_types(config), "experts_per_token": config.active_experts, **GPT_OSS_ONLY}


def read_qwen3_moe(hf: Fields, where: str) -> Fields:
    """The experts; UserError where some layers have one MLP."""
    layers, every = integer(hf, "num_hidden_layers", where), integer(hf, "decoder_sparse_step", where, 1)
    dense = {i for i in range(layers) if (i + 1) % every} | set(hf.get("mlp_only_layers") or ()) & set(range(layers))
    if dense:
        raise UserError(
            f"{where}: layer {min(dense)} has one MLP and not experts (decoder_sparse_step {every}, mlp_only_layers "
            f"{hf.get('mlp_only_layers') or []}); only models are supported of which every layer has experts"
        )
    # transformers 5 may write num_local_experts.
    experts = integer(hf, "num_experts", where, hf.get("num_local_experts", 128))
    window = hf.get("sliding_window", 4096) if boolean(hf, "use_sliding_window", where) else None
    return {
        "mlp_width": integer(hf, "moe_intermediate_size", where, 768),
        "experts": experts,
        "active_experts": integer(hf, "num_experts_per_tok", where, 8),
        "norm_expert_weights": boolean(hf, "norm_topk_prob", where),
        "sliding_window": None if window is None else integer({"sliding_window": window}, "sliding_window", where),
    }


def write_qwen3_moe(config: ModelConfig) -> Fields:
    """The experts, by their names there."""
    return {
        # Of the layers with one MLP, of which there are none.
        "intermediate_size": config.computed_mlp_width,
        "moe_intermediate_size": config.mlp_width,
        "num_experts": config.experts,
        "num_experts_per_tok": config.active_experts,
        "norm_topk_prob": config.norm_expert_weights,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "sliding_window": config.sliding_window,
        "use_sliding_window": config.sliding_window is not None,
        "attention_bias": False,
    }
