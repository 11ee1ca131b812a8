"""`data.eval_text` under a model: how much of plain language modelling a run forgets."""

from __future__ import annotations

import dataclasses

import numpy as np

from align_jax.data import BatchLoader
from align_jax.data.texts import KEY, TextPieces, read_pieces
from align_jax.errors import UserError
from align_jax.evaluation import Table, collect
from align_jax.evaluation.table import table_of
from align_jax.recipes.say import say, watched
from align_jax.recipes.setup import Setup


@dataclasses.dataclass(frozen=True)
class EvalText:
    """The texts, with the log-probs of the reference, ready to be scored by any weights of the model's shape."""

    setup: Setup
    pieces: TextPieces
    loader: BatchLoader

    def table(self, params: dict) -> Table:
        """Metrics of a model; a text is a cluster.

        text/loss       = - log pi(tokens) / tokens,  nats per token; text/perplexity = exp(text/loss)
        text/forgotten  = (log pi_ref(tokens) - log pi(tokens)) / tokens
        """
        batches = watched("evaluating texts", self.loader.eval_batches(), len(self.pieces), self.setup.mesh)
        found = collect(self.setup.under(params).batch, batches)
        logps, reference = found.logps[:, 0], found.labels["ref_logps"][:, 0]
        tokens = found.lengths[:, 0]
        metrics = {"text/loss": (-logps, tokens), "text/forgotten": (reference - logps, tokens)}
        return table_of(metrics, self.pieces.text_ids[found.rows])


def eval_text(setup: Setup, passes: int) -> EvalText | None:
    """Reads `data.eval_text`, with the reference's log-probs; None where there is none.

    Args:
      passes: how often it will be scored.

    Raises:
      UserError: a reward model, which tells nothing of texts; texts that cannot be read.
    """
    config = setup.config
    if config.data.eval_text is None:
        return None
    if config.head == "score":
        raise UserError(f"{KEY}: {config.data.eval_text!r}, but a reward model gives no probability to texts; leave it out")
    pieces = read_pieces(config.data, setup.encoder, setup.source.shape.max_length, setup.folder.path / "spool")
    say(f"{KEY}: {pieces.summary}")
    loader = setup.loader(pieces, passes + 1)
    loader.join(setup.reference_logps(pieces, np.arange(len(pieces)), loader.eval_batches()))
    return EvalText(setup, pieces, loader)
