"""Where the operations of a step go: the least, and each thing that is computed beside it.

The parts are formulas of shapes, in the order of the program: what is counted and not explained stands last, so that nothing
is hidden. With C the positions that are computed and T the real tokens among them, a step does

    least            3 x forward of T
    padding          3 x forward of C - T, without attention
    pairs            pairs of a query and a key that nobody sees: in blocks or rows, where some are seen
    weights again    attention's weights, made again in its backward pass (once, or twice by two kernels)
    logits again     the head's logits in the backward pass, where they are not kept (`model.head_chunk`)
    remat            what `model.remat` repeats
    row chunks       a forward pass of response rows, where they are computed in chunks (`model.rows_per_chunk`)
    other            counted in the program, and none of these
"""

from __future__ import annotations

import dataclasses
import math

from align_jax.batch import GroupBatch
from align_jax.cost.flops import Forward, forward_of, least_flops
from align_jax.cost.kernels import BACKWARD_LEAST, FORWARD, backward_products, computed
from align_jax.scoring.scorer import Scorer


@dataclasses.dataclass(frozen=True)
class Parts:
    """Operations of a step, all devices together; see the module."""

    least: float
    padding: float
    pairs: float
    weights_again: float
    logits_again: float
    remat: float
    row_chunks: float
    other: float

    def values(self) -> dict[str, float]:
        """Part -> operations."""
        return {name.replace("_", " "): value for name, value in dataclasses.asdict(self).items()}


def parts_of(scorer: Scorer, batch: GroupBatch, real: Forward, done: float) -> Parts:
    """The parts of what a step does.

    Args:
      scorer: with the backend that computes attention. batch: on the host, microbatches on a leading axis; may be shapes alone.
      real: of its real tokens.
      done: operations that were counted in the program, and those of its kernels.
    """
    config, language = scorer.config, scorer.config.head == "lm_head"
    rows, prompts = math.prod(batch.tokens.shape), math.prod(batch.prompt_tokens.shape)
    chunk, count = scorer.chunk(batch), batch.tokens.shape[-2]
    if chunk is not None:
        rows = rows // count * (chunk * -(-count // chunk))
    every, of_rows = (
        dataclasses.replace(forward, head=forward.head if language else real.head)
        for forward in (forward_of(config, rows + prompts, 0, rows), forward_of(config, rows, 0, rows))
    )

    pairs, product = computed(scorer, batch), 2 * config.layers * config.heads * config.head_size
    seen = real.attention // (2 * product)
    backward, attended = backward_products(scorer), product * sum(pairs)
    found = Parts(
        least=least_flops(real),
        padding=3 * (every.layers + every.head - real.layers - real.head) - (every.frozen - real.frozen),
        pairs=(FORWARD + backward) * (attended - product * seen),
        weights_again=(backward - BACKWARD_LEAST) * product * seen,
        logits_again=every.head * scorer.head_twice(batch),
        remat=(scorer.remat == "full") * (every.layers - every.down + FORWARD * attended),
        row_chunks=(chunk is not None) * (of_rows.layers + of_rows.head + FORWARD * product * pairs[1]),
        other=0.0,
    )
    return dataclasses.replace(found, other=done - sum(found.values().values()))


def describe(values: dict[str, float]) -> str:
    """Each part that is there, as a share of the least operations, and not, as padding is elsewhere, of what is computed."""
    rest = {name: value / values["least"] for name, value in values.items() if name != "least"}
    found = ", ".join(f"{name} {share:.1%}" for name, share in rest.items() if abs(share) >= 0.0005)
    return f"{found} of the least FLOPs" if found else "nothing"
