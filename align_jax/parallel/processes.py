"""Several processes as one: what the first one's disk holds, and what it decides, is so for all."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax.errors import UserError


def on_first(work: Callable[[], object], what: str) -> None:
    """Does `work` on the first process, and lets the others go on when it is done; all must call.

    Args:
      work: such as writing a file. what: its name in the error of the other processes.

    Raises:
      UserError: on the other processes, where the work failed; the first one raises what `work` raised.
    """
    failure = None
    if jax.process_index() == 0:
        try:
            work()
        except Exception as caught:
            failure = caught
    failed = of_first(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise UserError(f"{what}: the first process failed; its own message says why")


def of_first(value: bool) -> bool:
    """The first process's value, on every process; all must call."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def largest_anywhere(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The largest of each size over all processes, so that their batches have one shape; all must call."""
    return tuple(int(n) for n in multihost_utils.process_allgather(np.asarray(sizes)).max(axis=0))
