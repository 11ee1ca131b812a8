"""The decoder: LLaMA, Mistral and Qwen as one module."""

from align_jax.models.config import ModelConfig, RopeScaling
from align_jax.models.decoder import Decoder
from align_jax.models.weights import init_weights, weight_shapes, weight_shardings

__all__ = ["Decoder", "ModelConfig", "RopeScaling", "init_weights", "weight_shapes", "weight_shardings"]
