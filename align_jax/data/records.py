"""Tokenized groups, before they are packed into arrays."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens to predict after the prompt, or after the prompt and a parent segment.

    Attributes:
      tokens: int32 `[n]`, n >= 1.
      slot: the response slot k that its log-prob belongs to; -1 where it is not scored.
      parent: index of another segment of the group that this one continues; -1 for the prompt alone.
      scored: bool `[n]`, which tokens its log-prob is the sum over (the assistant's, of a conversation); None: all.
    """

    tokens: np.ndarray
    slot: int
    parent: int = -1
    scored: np.ndarray | None = None

    @property
    def length(self) -> int:
        """How many tokens are scored."""
        return len(self.tokens) if self.scored is None else int(np.sum(self.scored))


@dataclasses.dataclass(frozen=True)
class TokenGroup:
    """One prompt and its segments.

    Attributes:
      row: the data row it came from.
      prompt: int32 `[m]`, m >= 1.
      segments: the responses, beliefs and texts.
      slots: K of this group.
      labels: what the objective needs, arrays without the axis G (`scores` `[K]`, ...).
      ends: what is read of a response is the state at its last token (a reward model's score), see `align_jax.batch`.
      per_response: the labels whose first axis is K.
    """

    row: int
    prompt: np.ndarray
    segments: tuple[Segment, ...]
    slots: int
    labels: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    ends: bool = False
    per_response: tuple[str, ...] = ()

    def __post_init__(self):
        where = f"the group of row {self.row}"
        if len(self.prompt) == 0:
            raise ValueError(f"{where} has an empty prompt; a prompt needs at least one token (BOS will do)")
        scored = [s.slot for s in self.segments if s.slot >= 0]
        if len(set(scored)) < len(scored) or max(scored, default=-1) >= self.slots:
            raise ValueError(f"{where}: segments with slots {scored} must have different slots below {self.slots}")
        for i, segment in enumerate(self.segments):
            if len(segment.tokens) == 0:
                raise ValueError(f"{where}: segment {i} (slot {segment.slot}) has no tokens")
            if segment.parent >= 0 and self.ends:
                raise ValueError(f"{where}: segment {i} continues segment {segment.parent}, and then has no score of its own")
            if segment.parent >= 0 and self.segments[segment.parent].parent >= 0:
                raise ValueError(f"{where}: segment {i} continues segment {segment.parent}, which continues another one")
