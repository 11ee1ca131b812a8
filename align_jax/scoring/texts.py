"""Scores of texts as they are, without a config: what a notebook asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from align_jax.batch import GroupBatch
from align_jax.data import make_groups
from align_jax.models.decoder import Decoder
from align_jax.scoring import logps


def response_logps(
    model: Decoder,
    batch: GroupBatch | Sequence,
    responses: Sequence[Sequence] | None = None,
    *,
    tokenizer: Any = None,
    per_token: bool = False,
    **chunks: int | None,
) -> jax.Array:
    """Log-probability of every response given its prompt, `sum_t log p(y_t | x, y_<t)`, end-of-sequence token included.

        response_logps(model, batch)                                                # of `make_groups`, or a loader's
        response_logps(model, ["2 + 2 ="], [[" 4", " 5"]], tokenizer=tokenizer)     # texts, or conversations

    Args:
      model: what `load_model` returns.
      batch: prompts and responses in arrays; or the prompts `[G]`, see `make_groups`.
      responses: `[G][K_g]`, where `batch` is prompts.
      tokenizer: of transformers, where prompts and responses are texts or conversations; they are rendered and tokenized as
        training does, and nothing is cut.
      per_token: True gives the terms of the sum, one per token.
      chunks: `rows_per_chunk` and `head_chunk`, see `align_jax.scoring.logps.response_logps`.

    Returns:
      float32 `[G, K]`, or with `per_token` `[G, K, T]`; 0 for what does not exist.

    Raises:
      ValueError: see `make_groups`.
      UserError: texts that cannot be tokenized.
    """
    if not isinstance(batch, GroupBatch):
        if responses is None:
            raise ValueError("give the responses to these prompts, [G][K_g], or one batch of both (align_jax.make_groups)")
        batch = make_groups(batch, responses, tokenizer=tokenizer)
    elif responses is not None or tokenizer is not None:
        raise ValueError("the batch holds prompts and responses as tokens: leave `responses` and `tokenizer` out")
    return logps.response_logps(model, batch, per_token=per_token, **chunks)
