"""The families of models that are read and written: a row each, with what tells it from a LLaMA. See docs/adding-a-model.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from align_jax.errors import UserError
from align_jax.hf.fields import boolean, integer, number, value
from align_jax.hf.rope import FULL, SLIDING, longrope_of_phi
from align_jax.models import ModelConfig

Fields = dict[str, Any]


def nothing(*_: Any) -> Fields:
    """No more fields."""
    return {}


@dataclasses.dataclass(frozen=True)
class Family:
    """What is particular to one `model_type`.

    Attributes:
      kind: the `model_type`.
      name: what its classes in transformers begin with, as in `LlamaForCausalLM`.
      pieces: values of ModelConfig that every model of the family has.
      absent: what transformers takes where config.json is silent.
      local_rope: base of rotary frequencies in layers with a window, where these have one of their own, and the field of
        transformers 4 that names it (None: none does).
      read: (config.json, file for errors) -> more values of ModelConfig.
      write: model -> more fields of config.json.
      classifier: what its sequence classifiers begin with, where that is another name.
      activation: the field that names the MLP's activation.
      only: settings that would change the numbers, and the one value of each that is computed.
      rotates_a_part: whether a part of a head may be rotated.
      classifies: whether transformers has a sequence classifier of it, which a reward model is written as.
    """

    kind: str
    name: str
    pieces: Fields = dataclasses.field(default_factory=dict)
    absent: Fields = dataclasses.field(default_factory=dict)
    local_rope: tuple[float, str | None] | None = None
    read: Callable[[Fields, str], Fields] = nothing
    write: Callable[[ModelConfig], Fields] = nothing
    classifier: str | None = None
    activation: str = "hidden_act"
    only: Fields = dataclasses.field(default_factory=lambda: {"attention_bias": False, "mlp_bias": False})
    rotates_a_part: bool = False
    classifies: bool = True

    def architecture(self, head: str) -> str:
        """The class of transformers for a head."""
        if head == "lm_head":
            return f"{self.name}ForCausalLM"
        return f"{self.classifier or self.name}ForSequenceClassification"


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


def _patterned(absent: int | None, otherwise: Callable[[int, Fields], bool]) -> Callable[[Fields, str], Fields]:
    """A reader of windows in some layers."""

    def read(hf: Fields, where: str) -> Fields:
        return _windows(_types(hf, where, lambda i: otherwise(i, hf)), hf.get("sliding_window", absent), where)

    return read


def _unmixed(hf: Fields, where: str) -> Fields:
    """No values: of a family whose layers are all alike."""
    if len(set(hf.get("layer_types") or ())) > 1:
        raise UserError(
            f"{where}: layer_types mixes {sorted(set(hf['layer_types']))}; all layers of this family must be of one type"
        )
    return {}


def _everywhere(absent: int | None) -> Callable[[Fields, str], Fields]:
    """A reader of one window for all layers, or none."""

    def read(hf: Fields, where: str) -> Fields:
        _unmixed(hf, where)
        window = hf.get("sliding_window", absent)
        return {} if window is None else {"sliding_window": integer({"sliding_window": window}, "sliding_window", where)}

    return read


def _layer_types(config: ModelConfig) -> list[str]:
    flags = config.layer_windows or (config.sliding_window is not None,) * config.layers
    return [SLIDING if flag else FULL for flag in flags]


def _write_window(config: ModelConfig) -> Fields:
    return {"sliding_window": config.sliding_window}


def _write_types(config: ModelConfig) -> Fields:
    return {"sliding_window": config.sliding_window, "layer_types": _layer_types(config)}


# Qwen: a window is written that is not used, unless `use_sliding_window` says so, and then in the last layers.


def _read_qwen(hf: Fields, where: str) -> Fields:
    if not boolean(hf, "use_sliding_window", where):
        return {}
    window, first = hf.get("sliding_window", 4096), value(hf, "max_window_layers", where, 28)
    if window is None:
        return {}
    return _windows(_types(hf, where, lambda i: i >= first), window, where)


def _write_qwen(config: ModelConfig) -> Fields:
    types = _layer_types(config)
    first = types.index(SLIDING) if SLIDING in types else config.layers
    mixed = {"layer_types": types} if len(set(types)) > 1 else {}
    return {
        "sliding_window": config.sliding_window,
        "use_sliding_window": config.sliding_window is not None,
        "max_window_layers": first,
        **mixed,
    }


def _write_qwen3(config: ModelConfig) -> Fields:
    return {**_write_qwen(config), "attention_bias": False}


# Gemma.


def _gemma(config_absent: int | None, otherwise: Callable[[int, Fields], bool]) -> Callable[[Fields, str], Fields]:
    windows = _patterned(config_absent, otherwise)

    def read(hf: Fields, where: str) -> Fields:
        if hf.get("use_bidirectional_attention"):
            raise UserError(f"{where}: use_bidirectional_attention is true; only causal attention is supported")
        scale, width = number(hf, "query_pre_attn_scalar", where, 256.0), integer(hf, "hidden_size", where)
        return {"attention_scale": scale**-0.5, "embed_scale": width**0.5, **windows(hf, where)}

    return read


def _caps(hf: Fields, where: str) -> Fields:
    absent = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    found = {key: hf.get(key, usual) for key, usual in absent.items()}
    return {
        "attention_softcap": number(found, "attn_logit_softcapping", where, None),
        "logit_softcap": number(found, "final_logit_softcapping", where, None),
    }


def _final_cap(hf: Fields, where: str) -> Fields:
    return {"logit_softcap": number(hf, "final_logit_softcapping", where, None)}


def _write_gemma(config: ModelConfig) -> Fields:
    scale = config.head_size**-0.5 if config.attention_scale is None else config.attention_scale
    return {
        **_write_types(config),
        "query_pre_attn_scalar": _whole(scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
    }


def _whole(x: float) -> float | int:
    """A whole number where x is one but for rounding."""
    return round(x) if abs(x - round(x)) < 1e-6 * abs(x) else x


def _both(*readers: Callable) -> Callable[..., Fields]:
    def read(*args: Any) -> Fields:
        return {key: found for reader in readers for key, found in reader(*args).items()}

    return read


def _but_every(count: int, key: str | None = None) -> Callable[[int, Fields], bool]:
    """Of a layer's number: whether it has a window, where every `count`-th has none; a field may say another number."""
    return lambda i, hf: (i + 1) % int((hf.get(key) if key else None) or count) != 0


# SmolLM3: `no_rope_layers` is 1 for a layer that does rotate.


def _read_smollm3(hf: Fields, where: str) -> Fields:
    layers = integer(hf, "num_hidden_layers", where)
    every = integer(hf, "no_rope_layer_interval", where, 4)
    rotated = hf.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(layers)]
    if len(rotated) < layers:
        raise UserError(f"{where}: no_rope_layers has {len(rotated)} entries for {layers} layers")
    ropes = tuple(bool(flag) for flag in rotated[:layers])
    window = hf.get("sliding_window") if boolean(hf, "use_sliding_window", where) else None
    types = _types(hf, where, lambda i: window is not None and not ropes[i])
    return {"layer_ropes": ropes, **_windows(types, hf.get("sliding_window"), where)}


def _write_smollm3(config: ModelConfig) -> Fields:
    ropes = config.layer_ropes or (True,) * config.layers
    return {
        **_write_types(config),
        "use_sliding_window": config.sliding_window is not None,
        "no_rope_layers": [int(flag) for flag in ropes],
        "attention_bias": False,
        "mlp_bias": False,
    }


# Granite.


def _read_granite(hf: Fields, where: str) -> Fields:
    return {
        "embed_scale": number(hf, "embedding_multiplier", where, 1.0),
        "residual_scale": number(hf, "residual_multiplier", where, 1.0),
        "attention_scale": number(hf, "attention_multiplier", where, 1.0),
        "logit_divisor": number(hf, "logits_scaling", where, 1.0),
    }


def _write_granite(config: ModelConfig) -> Fields:
    return {
        "embedding_multiplier": config.embed_scale,
        "residual_multiplier": config.residual_scale,
        "attention_multiplier": config.head_size**-0.5 if config.attention_scale is None else config.attention_scale,
        "logits_scaling": config.logit_divisor,
        "attention_bias": False,
        "mlp_bias": False,
    }


# Seed-OSS: `attention_bias` is of queries, keys and values alone.


def _read_seed_oss(hf: Fields, where: str) -> Fields:
    return {"qkv_bias": boolean(hf, "attention_bias", where, True), **_unmixed(hf, where)}


def _write_seed_oss(config: ModelConfig) -> Fields:
    return {"attention_bias": config.qkv_bias, **_SEED_OSS_ONLY}


# Mixtures of experts.


def _read_mixtral(hf: Fields, where: str) -> Fields:
    return {
        "experts": integer(hf, "num_local_experts", where, 8),
        "active_experts": integer(hf, "num_experts_per_tok", where, 2),
    }


def _write_mixtral(config: ModelConfig) -> Fields:
    return {"num_local_experts": config.experts, "num_experts_per_tok": config.active_experts}


def _read_qwen3_moe(hf: Fields, where: str) -> Fields:
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


def _write_qwen3_moe(config: ModelConfig) -> Fields:
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


_QWEN = {"max_position_embeddings": 32768}
_SEED_OSS_ONLY = {"attention_out_bias": False, "mlp_bias": False}
_GEMMA = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "num_attention_heads": 8,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "vocab_size": 256000,
}
_GEMMA_PIECES = {"norms": "both", "norm_offset": 1.0, "norm_float32": True, "activation": "gelu_tanh"}
_OLMO_PIECES = {"norms": "after", "norm_float32": True, "qk_norm_whole": True}

_ALL = (
    Family(
        "llama",
        "Llama",
        absent={"max_position_embeddings": 2048, "num_key_value_heads": None},
        read=_unmixed,
        write=lambda _: {"attention_bias": False, "mlp_bias": False},
    ),
    Family("mistral", "Mistral", absent={"max_position_embeddings": 131072}, read=_everywhere(4096), write=_write_window),
    Family("qwen2", "Qwen2", pieces={"qkv_bias": True}, absent=_QWEN, read=_read_qwen, write=_write_qwen),
    Family("qwen3", "Qwen3", pieces={"qk_norm": True}, absent={**_QWEN, "head_dim": 128}, read=_read_qwen, write=_write_qwen3),
    Family(
        "gemma2",
        "Gemma2",
        pieces=_GEMMA_PIECES,
        absent={**_GEMMA, "max_position_embeddings": 8192},
        read=_both(_gemma(4096, lambda i, hf: i % 2 == 0), _caps),
        write=_write_gemma,
        activation="hidden_activation",
    ),
    Family(
        "gemma3_text",
        "Gemma3",
        pieces={**_GEMMA_PIECES, "qk_norm": True},
        absent={**_GEMMA, "max_position_embeddings": 131072, "vocab_size": 262208, "rope_theta": 1e6},
        local_rope=(1e4, "rope_local_base_freq"),
        # It has a field for a cap in attention, which transformers does not read.
        read=_both(_gemma(4096, _but_every(6, "sliding_window_pattern")), _final_cap),
        write=_write_gemma,
        classifier="Gemma3Text",
        activation="hidden_activation",
    ),
    Family(
        "ministral",
        "Ministral",
        absent={"max_position_embeddings": 131072, "num_key_value_heads": 8, "rms_norm_eps": 1e-6},
        read=_patterned(4096, lambda i, hf: hf.get("sliding_window", 4096) is not None),
        write=_write_types,
    ),
    Family(
        "smollm3",
        "SmolLM3",
        absent={
            "max_position_embeddings": 32768,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
        },
        read=_read_smollm3,
        write=_write_smollm3,
    ),
    Family(
        "granite",
        "Granite",
        absent={"max_position_embeddings": 2048, "num_key_value_heads": None, "rms_norm_eps": 1e-6},
        read=_both(_unmixed, _read_granite),
        write=_write_granite,
        classifies=False,
    ),
    Family(
        "olmo2",
        "Olmo2",
        pieces=_OLMO_PIECES,
        absent={"max_position_embeddings": 2048, "num_key_value_heads": None, "rms_norm_eps": 1e-5},
        read=_unmixed,
        write=lambda _: {"attention_bias": False},
    ),
    Family(
        "olmo3",
        "Olmo3",
        pieces=_OLMO_PIECES,
        absent={
            "max_position_embeddings": 2048,
            "num_key_value_heads": None,
            "rms_norm_eps": 1e-5,
            "rope_theta": 5e5,
        },
        local_rope=(5e5, None),
        read=_patterned(4096, _but_every(4)),
        write=lambda config: {**_write_types(config), "attention_bias": False},
    ),
    Family(
        "phi3",
        "Phi3",
        pieces={"fused": True},
        absent={"max_position_embeddings": 4096, "num_key_value_heads": None, "rms_norm_eps": 1e-5},
        read=_everywhere(None),
        write=lambda config: {**_write_window(config), **longrope_of_phi(config)},
        rotates_a_part=True,
    ),
    Family(
        "mixtral",
        "Mixtral",
        absent={
            "max_position_embeddings": 131072,
            "rope_theta": 1e6,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
        },
        read=_both(_everywhere(None), _read_mixtral),
        write=_both(_write_window, _write_mixtral),
    ),
    Family(
        "qwen3_moe",
        "Qwen3Moe",
        pieces={"qk_norm": True},
        absent={**_QWEN, "num_key_value_heads": 4, "rms_norm_eps": 1e-6},
        read=_both(_unmixed, _read_qwen3_moe),
        write=_write_qwen3_moe,
    ),
    Family(
        "seed_oss",
        "SeedOss",
        absent={"max_position_embeddings": 524288, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6},
        read=_read_seed_oss,
        write=_write_seed_oss,
        only=_SEED_OSS_ONLY,
    ),
)
FAMILIES: dict[str, Family] = {family.kind: family for family in _ALL}
# architecture -> (its family, the head it has)
ARCHITECTURES: dict[str, tuple[str, str]] = {
    family.architecture(head): (family.kind, head) for head in ("lm_head", "score") for family in _ALL
}
