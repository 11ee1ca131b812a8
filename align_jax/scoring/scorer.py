"""How responses are scored in a run."""

from __future__ import annotations

import dataclasses

import jax

from align_jax.batch import GroupBatch
from align_jax.models import Decoder, ModelConfig
from align_jax.scoring.logps import HEAD_CHUNK, response_logps
from align_jax.scoring.scores import response_scores


@dataclasses.dataclass(frozen=True)
class Scorer:
    """How responses are scored: the model's shape and numerics, and the chunks; static for a run."""

    config: ModelConfig
    dtype: str = "bfloat16"
    remat: str = "none"
    attention: str = "auto"
    rows_per_chunk: int | None = None
    head_chunk: int = HEAD_CHUNK

    def __call__(self, params: dict, batch: GroupBatch) -> jax.Array:
        """What the model's head says of the responses, `[G, K]`: log-probs (of policy and reference both), or scores."""
        model = Decoder(self.config, params, dtype=self.dtype, remat=self.remat, attention=self.attention)
        if self.config.head == "score":
            return response_scores(model, batch, rows_per_chunk=self.rows_per_chunk)
        return response_logps(model, batch, rows_per_chunk=self.rows_per_chunk, head_chunk=self.head_chunk)
