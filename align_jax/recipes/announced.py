"""A training step that says when it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from align_jax.recipes.memory import planned
from align_jax.recipes.say import compiling


class AnnouncedStep:
    """`(state, batch) -> (state, metrics)`, which says so when a batch has a shape that did not come before.

    Args:
      step: what is done.
      shapes: how many shapes the layout of the batches has; 0 where that is not known.
      before: told of a batch whose shape is new, before it is compiled.
    """

    def __init__(
        self, step: Callable[[Any, Any], tuple[Any, dict]], shapes: int = 0, before: Callable[[Any], None] | None = None
    ):
        self._step, self._shapes, self._before = step, shapes, before
        self._seen: set[Any] = set()
        self._shapes_of: tuple[Any, Any] | None = None  # of state and batch, where they are

    def __call__(self, state: Any, batch: Any) -> tuple[Any, dict]:
        leaves, structure = jax.tree.flatten(batch)
        key = (structure, *(leaf.shape for leaf in leaves))
        if key in self._seen:
            return self._step(state, batch)
        self._seen.add(key)
        self._shapes_of = jax.tree.map(_shape, (state, batch))
        if self._before is not None:
            self._before(batch)
        number = len(self._seen)
        of = f" of {self._shapes}" if number <= self._shapes else ""
        only = number == 1 and self._shapes < 2
        with compiling("the training step" if only else f"the training step (shape {number}{of})"):
            return self._step(state, batch)

    @property
    def tokens(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The shapes of the tokens of responses and of prompts of the newest shape of batch; None before the first."""
        return None if self._shapes_of is None else (self._shapes_of[1].tokens.shape, self._shapes_of[1].prompt_tokens.shape)

    def planned(self) -> str:
        """What the compiler says that the step needs for the newest shape; empty where that is not known."""
        try:
            return planned(self._step.lower(*self._shapes_of).compile())
        except Exception:  # it is asked for what to say of another error
            return ""


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) if isinstance(leaf, jax.Array) else leaf
