"""Tokens in, a reward model's scores of the responses out."""

from __future__ import annotations

import jax

from align_jax.batch import GroupBatch
from align_jax.models.decoder import Decoder
from align_jax.models.experts import Load
from align_jax.scoring.responses import sums_and_load


def response_scores(model: Decoder, batch: GroupBatch, *, rows_per_chunk: int | None = None) -> jax.Array:
    """Score of every response given its prompt, `h . w`, h the normalized hidden state at the response's last token.

    The prompt runs once for all its responses; values and gradients equal those of scoring each `prompt + response` alone,
    as transformers' `LlamaForSequenceClassification` and `MistralForSequenceClassification` with one label do.

    Args:
      model: a reward model (`ModelConfig.head` is `score`).
      batch: prompts and responses laid out with `ends=True`, see `align_jax.batch`; the arrays may be traced.
      rows_per_chunk: as in `align_jax.response_logps`.

    Returns:
      float32 `[G, K]`; 0 for a response that does not exist.

    Raises:
      ValueError: a language model, a batch that is laid out for log-probs, or `rows_per_chunk` below 1.

    Example:
      >>> import align_jax
      >>> model = align_jax.load_model("path/to/reward-model", head="score")  # doctest: +SKIP
      >>> batch = align_jax.make_groups([[1, 5, 7]], [[[8, 9, 2], [4, 2]]], ends=True)
      >>> align_jax.response_scores(model, batch)  # doctest: +SKIP
    """
    return scores_and_load(model, batch, rows_per_chunk=rows_per_chunk, counted=False)[0]


def scores_and_load(
    model: Decoder, batch: GroupBatch, *, rows_per_chunk: int | None = None, counted: bool = True
) -> tuple[jax.Array, Load | None]:
    """`response_scores`, and how the tokens of a mixture are spread over its experts: None if not `counted`, or no mixture."""
    if not batch.ends:
        raise ValueError("the batch is laid out for log-probs: a response's last token is no input; make it with ends=True")
    return sums_and_load(model, batch, lambda hidden, rows: model.scores(hidden), rows_per_chunk, counted)
