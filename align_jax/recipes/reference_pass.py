"""The pass over a data set in which the reference scores it, and the table that keeps what it said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax
import numpy as np

from align_jax.batch import GroupBatch
from align_jax.parallel.mesh import readers
from align_jax.parallel.stop import StoppedPass, listening
from align_jax.recipes.say import say, watching
from align_jax.scoring.reference import Growing, compute_reference, known
from align_jax.scoring.scorer import FixedScorer


def fill_reference(table: Growing, needed: np.ndarray, scorer: FixedScorer, batches: Iterable[GroupBatch]) -> None:
    """The pass over the batches that computes what a table of reference log-probs lacks; says how far it is, and where it ends.

    Raises:
      StoppedPass: SIGTERM or Ctrl-C; what was computed is kept, and that was said.
    """
    missing, parts = int((~known(table.values)[needed]).sum()), readers(scorer.mesh, jax.process_count())
    with listening() as stop, stop.during("this batch of reference log-probs"):
        try:
            with watching("reference log-probs", missing, "rows") as watch:
                compute_reference(scorer.batch, batches, table, stop, lambda rows: watch.add(rows * parts))
        except StoppedPass as stopped:
            stopped.said = True
            kept = int(known(table.values)[needed].sum())
            say(
                f"stopped by {stop.cause}: {kept} of {len(needed)} rows have their reference log-probs, which are kept; the "
                "same command goes on from there"
            )
            raise


def microbatches(batches: Iterable[GroupBatch]) -> Iterator[GroupBatch]:
    """Batches without their leading axis of microbatches."""
    for batch in batches:
        for i in range(batch.tokens.shape[0]):
            yield jax.tree.map(lambda x, i=i: x[i], batch)
