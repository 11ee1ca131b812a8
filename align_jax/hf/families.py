"""The families of models that are read and written: a row each, with what tells it from a LLaMA. See docs/adding-a-model.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from align_jax.hf import family_fields as fields
from align_jax.hf.family_fields import Fields
from align_jax.hf.rope import longrope_of_phi
from align_jax.models import ModelConfig


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
      packed: whether checkpoints may hold the weights of experts as MXFP4 (`align_jax.hf.mxfp4`).
      classifies: whether transformers has a sequence classifier of it, which a reward model is written as.
    """

    kind: str
    name: str
    pieces: Fields = dataclasses.field(default_factory=dict)
    absent: Fields = dataclasses.field(default_factory=dict)
    local_rope: tuple[float, str | None] | None = None
    read: Callable[[Fields, str], Fields] = fields.nothing
    write: Callable[[ModelConfig], Fields] = fields.nothing
    classifier: str | None = None
    activation: str = "hidden_act"
    only: Fields = dataclasses.field(default_factory=lambda: {"attention_bias": False, "mlp_bias": False})
    rotates_a_part: bool = False
    classifies: bool = True
    packed: bool = False

    def architecture(self, head: str) -> str:
        """The class of transformers for a head."""
        if head == "lm_head":
            return f"{self.name}ForCausalLM"
        return f"{self.classifier or self.name}ForSequenceClassification"


_QWEN = {"max_position_embeddings": 32768}
_GEMMA = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "num_attention_heads": 8,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "vocab_size": 256000,
}
_GEMMA_PIECES = {"norms": "both", "norm_offset": 1.0, "norm_float32": True, "activation": "gelu_tanh"}
_GPT_OSS_PIECES = {"qkv_bias": True, "o_bias": True, "sinks": True, "expert_biases": True}
_GPT_OSS_PIECES |= {"norm_float32": True, "activation": "clamped_swiglu"}
_GPT_OSS_ROPE = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
_OLMO_PIECES = {"norms": "after", "norm_float32": True, "qk_norm_whole": True}

_ALL = (
    Family(
        "llama",
        "Llama",
        absent={"max_position_embeddings": 2048, "num_key_value_heads": None},
        read=fields.unmixed,
        write=lambda _: {"attention_bias": False, "mlp_bias": False},
    ),
    Family(
        "mistral",
        "Mistral",
        absent={"max_position_embeddings": 131072},
        read=fields.everywhere(4096),
        write=fields.write_window,
    ),
    Family("qwen2", "Qwen2", pieces={"qkv_bias": True}, absent=_QWEN, read=fields.read_qwen, write=fields.write_qwen),
    Family(
        "qwen3",
        "Qwen3",
        pieces={"qk_norm": True},
        absent={**_QWEN, "head_dim": 128},
        read=fields.read_qwen,
        write=fields.write_qwen3,
    ),
    Family(
        "gemma2",
        "Gemma2",
        pieces=_GEMMA_PIECES,
        absent={**_GEMMA, "max_position_embeddings": 8192},
        read=fields.both(fields.gemma(4096, lambda i, hf: i % 2 == 0), fields.caps),
        write=fields.write_gemma,
        activation="hidden_activation",
    ),
    Family(
        "gemma3_text",
        "Gemma3",
        pieces={**_GEMMA_PIECES, "qk_norm": True},
        absent={**_GEMMA, "max_position_embeddings": 131072, "vocab_size": 262208, "rope_theta": 1e6},
        local_rope=(1e4, "rope_local_base_freq"),
        # It has a field for a cap in attention, which transformers does not read.
        read=fields.both(fields.gemma(4096, fields.but_every(6, "sliding_window_pattern")), fields.final_cap),
        write=fields.write_gemma,
        classifier="Gemma3Text",
        activation="hidden_activation",
    ),
    Family(
        "ministral",
        "Ministral",
        absent={"max_position_embeddings": 131072, "num_key_value_heads": 8, "rms_norm_eps": 1e-6},
        read=fields.patterned(4096, lambda i, hf: hf.get("sliding_window", 4096) is not None),
        write=fields.write_types,
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
        read=fields.read_smollm3,
        write=fields.write_smollm3,
    ),
    Family(
        "granite",
        "Granite",
        absent={"max_position_embeddings": 2048, "num_key_value_heads": None, "rms_norm_eps": 1e-6},
        read=fields.both(fields.unmixed, fields.read_granite),
        write=fields.write_granite,
        classifies=False,
    ),
    Family(
        "olmo2",
        "Olmo2",
        pieces=_OLMO_PIECES,
        absent={"max_position_embeddings": 2048, "num_key_value_heads": None, "rms_norm_eps": 1e-5},
        read=fields.unmixed,
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
        read=fields.patterned(4096, fields.but_every(4)),
        write=lambda config: {**fields.write_types(config), "attention_bias": False},
    ),
    Family(
        "phi3",
        "Phi3",
        pieces={"fused": True},
        absent={"max_position_embeddings": 4096, "num_key_value_heads": None, "rms_norm_eps": 1e-5},
        read=fields.everywhere(None),
        write=lambda config: {**fields.write_window(config), **longrope_of_phi(config)},
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
        read=fields.both(fields.everywhere(None), fields.read_mixtral),
        write=fields.both(fields.write_window, fields.write_mixtral),
    ),
    Family(
        "qwen3_moe",
        "Qwen3Moe",
        pieces={"qk_norm": True},
        absent={**_QWEN, "num_key_value_heads": 4, "rms_norm_eps": 1e-6},
        read=fields.both(fields.unmixed, fields.read_qwen3_moe),
        write=fields.write_qwen3_moe,
    ),
    Family(
        "seed_oss",
        "SeedOss",
        absent={"max_position_embeddings": 524288, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6},
        read=fields.read_seed_oss,
        write=fields.write_seed_oss,
        only=fields.SEED_OSS_ONLY,
    ),
    Family(
        "gpt_oss",
        "GptOss",
        pieces=_GPT_OSS_PIECES,
        absent={
            "max_position_embeddings": 131072,
            "rope_theta": 150000.0,
            "rope_scaling": _GPT_OSS_ROPE,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
        },
        read=fields.read_gpt_oss,
        write=fields.write_gpt_oss,
        only=fields.GPT_OSS_ONLY,
        packed=True,
    ),
)
FAMILIES: dict[str, Family] = {family.kind: family for family in _ALL}
# architecture -> (its family, the head it has)
ARCHITECTURES: dict[str, tuple[str, str]] = {
    family.architecture(head): (family.kind, head) for head in ("lm_head", "score") for family in _ALL
}
