"""What distinguishes one model from another (LLaMA, Mistral, Qwen): values, never code paths."""

from __future__ import annotations

import dataclasses
from typing import Any

from align_jax.models.adapter import Adapter


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary embeddings; the fields are Hugging Face's `rope_scaling`.

    kind `linear`: every frequency divided by `factor`. kind `llama3`: low frequencies divided by `factor`, high ones kept,
    with a smooth ramp between `original_length / low_freq_factor` and `original_length / high_freq_factor` (Llama 3.1).

    Attributes:
      kind: linear (every frequency) or llama3 (low ones, with a ramp to the high ones, which are kept).
      factor: what frequencies are divided by.
      low_freq_factor, high_freq_factor: where the ramp of llama3 begins and ends.
      original_length: positions before the context was extended (llama3).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


HEADS = ("lm_head", "score")
# Fields that older versions had not, with what they then were.
LATER = {"qkv_bias": False, "qk_norm": False, "lora": None, "quantize": None}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and numerics of a decoder (LLaMA 1 to 3.2, Mistral, Qwen 2 to 3).

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
    quantize: str | None = None
    lora: Adapter | None = None

    def __post_init__(self):
        if self.head not in HEADS:
            raise ValueError(f"head is {self.head!r}; known: {', '.join(HEADS)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_size % 2:
            raise ValueError(f"head_size must be even for rotary embeddings, got {self.head_size}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1 or None, got {self.sliding_window}")

    def fields(self) -> dict[str, Any]:
        """Name -> value; without later fields that are as they always were, so that what is kept by them keeps its name."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}

    @property
    def base(self) -> ModelConfig:
        """The model without its adapter."""
        return self if self.lora is None else dataclasses.replace(self, lora=None)

    @property
    def plain(self) -> ModelConfig:
        """The model as a checkpoint has it: no adapter, no weights of few bits."""
        return dataclasses.replace(self, lora=None, quantize=None)

    def __repr__(self) -> str:
        return f"ModelConfig({', '.join(f'{name}={getattr(self, name)!r}' for name in self.fields())})"
