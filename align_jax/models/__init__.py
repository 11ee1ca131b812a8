"""The decoder: LLaMA and Mistral as one module."""

from align_jax.models.config import ModelConfig, RopeScaling
from align_jax.models.decoder import WEIGHT_AXES, Decoder, init_weights, weight_shapes, weight_shardings

__all__ = ["WEIGHT_AXES", "Decoder", "ModelConfig", "RopeScaling", "init_weights", "weight_shapes", "weight_shardings"]
