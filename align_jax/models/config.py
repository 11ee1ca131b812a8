"""What distinguishes one LLaMA or Mistral from another: values, never code paths."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary embeddings; the fields are Hugging Face's `rope_scaling`.

    kind `linear`: every frequency divided by `factor`. kind `llama3`: low frequencies divided by `factor`, high ones kept,
    with a smooth ramp between `original_length / low_freq_factor` and `original_length / high_freq_factor` (Llama 3.1).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


HEADS = ("lm_head", "score")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and numerics of a decoder (LLaMA 1 to 3.2, Mistral).

    `head` is what stands on the last layer: `lm_head`, logits of the next token, or `score`, one number (a reward model).
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

    def __post_init__(self):
        if self.head not in HEADS:
            raise ValueError(f"head is {self.head!r}; known: {', '.join(HEADS)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_size % 2:
            raise ValueError(f"head_size must be even for rotary embeddings, got {self.head_size}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1 or None, got {self.sliding_window}")
