"""What distinguishes one model from another: values, never code paths."""

from __future__ import annotations

import dataclasses
from typing import Any

from align_jax import ranges
from align_jax.models.adapter import MLP_TARGETS, Adapter

ROPES = ("linear", "llama3", "dynamic", "yarn", "longrope")
HEADS = ("lm_head", "score")
NORMS = ("before", "both", "after")
ACTIVATIONS = ("silu", "gelu_tanh", "clamped_swiglu")
# Fields that older versions had not, with what they then were.
LATER = {
    "qkv_bias": False,
    "qk_norm": False,
    "qk_norm_whole": False,
    "layer_windows": None,
    "layer_ropes": None,
    "local_rope_theta": None,
    "rotary_size": None,
    "rope_length": None,
    "norms": "before",
    "norm_offset": 0.0,
    "norm_float32": False,
    "activation": "silu",
    "embed_scale": 1.0,
    "residual_scale": 1.0,
    "attention_scale": None,
    "attention_softcap": None,
    "logit_softcap": None,
    "logit_divisor": 1.0,
    "fused": False,
    "experts": None,
    "active_experts": None,
    "norm_expert_weights": True,
    "o_bias": False,
    "sinks": False,
    "expert_biases": False,
    "lora": None,
    "quantize": None,
}
_LATER_OF_ROPE = {
    "attention_factor": 1.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
    "short_factors": (),
    "long_factors": (),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary embeddings; the fields are Hugging Face's `rope_scaling`.

    kind `linear`: every frequency divided by `factor`. kind `llama3`: low frequencies divided by `factor`, high ones kept,
    with a smooth ramp between `original_length / low_freq_factor` and `original_length / high_freq_factor` (Llama 3.1).
    kind `yarn`: the same with a linear ramp over the dimensions that turn `beta_fast` to `beta_slow` times in the original
    context (arXiv 2309.00071). kind `dynamic`: a larger base for texts longer than `original_length`. kind `longrope`: every
    frequency divided by a factor of its own, other ones for texts longer than `original_length` (arXiv 2402.13753).

    Attributes:
      kind: linear, llama3, dynamic, yarn or longrope.
      factor: what frequencies are divided by (not longrope).
      low_freq_factor, high_freq_factor: where the ramp of llama3 begins and ends.
      original_length: positions before the context was extended (not linear).
      attention_factor: what cosines and sines are multiplied by (yarn, longrope).
      beta_fast, beta_slow: where the ramp of yarn begins and ends, in turns.
      truncate: whether the ends of yarn's ramp are whole dimensions.
      short_factors, long_factors: of each frequency (longrope).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self):
        if self.kind not in ROPES:
            raise ValueError(f"rope_scaling.kind is {self.kind!r}; known: {', '.join(ROPES)}")
        for name in ("short_factors", "long_factors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_numbers(self, "model.config.rope_scaling.")

    @property
    def depends_on_length(self) -> bool:
        """Whether frequencies are others for long texts."""
        return self.kind in ("dynamic", "longrope")

    def fields(self) -> dict[str, Any]:
        """As `ModelConfig.fields`."""
        return _without(dataclasses.asdict(self), _LATER_OF_ROPE)

    def __repr__(self) -> str:
        return _written(self)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and numerics of a decoder of any family that `align_jax.hf` knows; the defaults are a LLaMA's.

    Attributes:
      vocab_size: number of tokens.
      width: of the residual stream.
      mlp_width: of the MLP's hidden layer.
      layers: number of layers.
      heads: number of query heads.
      kv_heads: number of key and value heads, which divides `heads`.
      head_size: of each head, even.
      norm_eps: added to the mean square in norms.
      rope_theta: base of the rotary frequencies.
      rope_scaling: scaling of those frequencies; None is none.
      sliding_window: how many positions back attention sees; None is all.
      tied_embeddings: the output layer is the embedding.
      max_length: positions that it was trained for, the context.
      head: what stands on the last layer: `lm_head`, logits of the next token, or `score`, one number (a reward model).
      qkv_bias: queries, keys and values have a bias (Qwen2).
      qk_norm: each head of queries and of keys has a norm before the rotation, one weight for all heads (Qwen3).
      qk_norm_whole: all heads of queries, and all of keys, have one norm together before the rotation (OLMo 2).
      layer_windows: which layers have the window; None is every one (Gemma).
      layer_ropes: which layers rotate queries and keys; None is every one (SmolLM3).
      local_rope_theta: base of the rotary frequencies of layers with the window, which are then not scaled (Gemma 3).
      rotary_size: dimensions of a head that are rotated, the first ones; None is all (Phi-4-mini).
      rope_length: tokens of the longest text that is computed, where the rotary frequencies depend on it (dynamic, longrope);
        None is a text within the original context.
      norms: where a layer's norms stand: before attention and MLP, after them (OLMo 2), or both (Gemma).
      norm_offset: added to the weights of norms (Gemma: 1).
      norm_float32: norms multiply by their weight before they round, not after (Gemma, OLMo).
      activation: of the MLP: silu, gelu_tanh, or clamped_swiglu (GPT-OSS), which bounds gate and up.
      embed_scale: what embeddings are multiplied by, rounded to the compute type.
      residual_scale: what attention and MLP are multiplied by before they are added to the residual (Granite).
      attention_scale: what logits of attention are multiplied by; None is 1 / sqrt(head_size).
      attention_softcap, logit_softcap: the c of c tanh(x / c), which logits of attention and of the vocabulary go through; None
        is none (Gemma 2).
      logit_divisor: what logits of the vocabulary are divided by (Granite).
      fused: a checkpoint holds q, k, v as one tensor, and gate and up (Phi-3).
      experts: how many MLPs of `mlp_width` each layer has, of which a token takes a few (Mixtral, Qwen3-MoE); None: one MLP.
      active_experts: how many a token takes: those that its router gives the largest probabilities.
      norm_expert_weights: the probabilities that weigh the outputs of a token's experts are divided by their sum.
      o_bias: the output of attention has a bias (GPT-OSS).
      sinks: each head has one more logit in its softmax, a weight, which is of no key (GPT-OSS).
      expert_biases: router and experts have biases, and a checkpoint holds all experts of a layer in one tensor (GPT-OSS).
      quantize: few bits for the projections of all layers, see `models.quantized.KINDS`; None: as they were stored.
      lora: the adapter on top of it, whose weights are rows of the table, too; None: none.
    """

    vocab_size: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    tied_embeddings: bool = False
    max_length: int = 2048
    head: str = "lm_head"
    qkv_bias: bool = False
    qk_norm: bool = False
    qk_norm_whole: bool = False
    layer_windows: tuple[bool, ...] | None = None
    layer_ropes: tuple[bool, ...] | None = None
    local_rope_theta: float | None = None
    rotary_size: int | None = None
    rope_length: int | None = None
    norms: str = "before"
    norm_offset: float = 0.0
    norm_float32: bool = False
    activation: str = "silu"
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    logit_divisor: float = 1.0
    fused: bool = False
    experts: int | None = None
    active_experts: int | None = None
    norm_expert_weights: bool = True
    o_bias: bool = False
    sinks: bool = False
    expert_biases: bool = False
    quantize: str | None = None
    lora: Adapter | None = None

    def __post_init__(self):
        _check_numbers(self, "model.config.")
        for name, known in (("head", HEADS), ("norms", NORMS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; known: {', '.join(known)}")
        for name in ("layer_windows", "layer_ropes"):
            if (value := getattr(self, name)) is not None:
                if len(value) != self.layers:
                    raise ValueError(f"{name} has {len(value)} values for {self.layers} layers")
                said = all(value) and (name == "layer_ropes" or self.sliding_window is not None)  # by the other fields
                object.__setattr__(self, name, None if said else tuple(value))
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        for name in ("head_size", "rotary_size"):
            if (getattr(self, name) or 0) % 2:
                raise ValueError(f"{name} must be even for rotary embeddings, got {getattr(self, name)}")
        if self.qk_norm and self.qk_norm_whole:
            raise ValueError("qk_norm and qk_norm_whole exclude each other")
        self._check_experts()
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1 or None, got {self.sliding_window}")

    def _check_experts(self) -> None:
        if self.experts is None and self.active_experts is None:
            if self.expert_biases:
                raise ValueError("expert_biases is true, but experts is None: there is nothing that could have them")
            return
        if self.experts is None or self.active_experts is None or not 1 <= self.active_experts <= self.experts:
            raise ValueError(f"active_experts is {self.active_experts}, which must be 1 to experts ({self.experts})")
        if self.lora is not None and (targets := [name for name in self.lora.targets if name in MLP_TARGETS]):
            raise ValueError(
                f"an adapter's target is {targets[0]}_proj, which this model has for each of {self.experts} experts: those "
                "have no adapters here; give it targets of attention (q_proj, k_proj, v_proj, o_proj)"
            )

    @property
    def computed_mlp_width(self) -> int:
        """Hidden columns of MLPs that are computed for a token: of its experts, or of the one MLP."""
        return self.mlp_width * (self.active_experts or 1)

    def fields(self) -> dict[str, Any]:
        """Name -> value; without later fields that are as they always were, so that what is kept by them keeps its name."""
        rope = self.rope_scaling and self.rope_scaling.fields()
        return _without(dataclasses.asdict(self) | {"rope_scaling": rope}, LATER)

    @property
    def base(self) -> ModelConfig:
        """The model without its adapter."""
        return self if self.lora is None else dataclasses.replace(self, lora=None)

    @property
    def plain(self) -> ModelConfig:
        """The model as a checkpoint has it: no adapter, no weights of few bits."""
        return dataclasses.replace(self, lora=None, quantize=None)

    def __repr__(self) -> str:
        return _written(self)


def _check_numbers(config: RopeScaling | ModelConfig, prefix: str) -> None:
    """ValueError for the first number of which no model can be made."""
    for field in dataclasses.fields(config):
        if why := ranges.refusal(f"{prefix}{field.name}", getattr(config, field.name)):
            raise ValueError(f"{field.name}: {why}")


def _without(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}


def _written(config: RopeScaling | ModelConfig) -> str:
    return f"{type(config).__name__}({', '.join(f'{name}={getattr(config, name)!r}' for name in config.fields())})"
