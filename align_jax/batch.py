"""The arrays that travel between data, model and losses.

Axis glossary, used in every docstring of the package:

    D   data shards: the blocks of a batch that devices work on independently
    M   prompt rows of a shard; a row holds one prompt or several packed ones
    P   positions of a prompt row
    N   response rows of a shard; a row holds one response or several packed ones
    R   positions of a response row
    G   groups (prompts) of the batch, `G = D * groups per shard`, shard-major
    K   response slots of a group
    V   vocabulary

How a group is laid out. The prompt `x_0 .. x_{m-1}` is computed once: its row holds `x_0 .. x_{m-2}`, and only the
keys and values are used. The response `y_0 .. y_{n-1}` (end-of-sequence token included) is the segment with inputs
`x_{m-1}, y_0 .. y_{n-2}` and targets `y_0 .. y_{n-1}`, so every computed position of a response row has a target.
A segment sees its own earlier tokens, the earlier part of its parent segment, and its prompt:

    visible(q, k) = k is a prompt token with k.segment == q.group
                 or k is in the same row, not after q, and k.segment is q.segment or q.parent

A parent is how a text shares the belief that it was conditioned on: the text's first input is the belief's last token.

A reward model reads the state at a response's last token, which is no input above. A batch with `ends` has inputs
`x_{m-1}, y_0 .. y_{n-1}` (the last one without a target), and `slots` marks that last position alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

Array = Any  # np.ndarray on the host, jax.Array on devices


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupLabels:
    """What an objective sees of a batch besides log-probs: everything but tokens.

    Attributes:
      mask: bool `[G, K]`, True for a response that exists.
      lengths: int32 `[G, K]`, how many targets of the response are scored.
      labels: name -> array with leading axis G, as the objective's arrangement says (`scores` `[G, K]`, ...); `ref_logps`
        `[G, K]` where the objective needs a reference.
    """

    mask: Array
    lengths: Array
    labels: dict[str, Array]

    @property
    def scores(self) -> Array:
        """The scores `[G, K]`; KeyError where there are none."""
        return self.labels["scores"]

    def with_labels(self, **labels: Array) -> GroupLabels:
        """A copy with these labels added or replaced."""
        return dataclasses.replace(self, labels={**self.labels, **labels})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupBatch:
    """Prompts, their responses and what the objective knows about them; see the module docstring for the layout.

    Attributes:
      prompt_tokens: int32 `[D, M, P]`, the prompts without their last token.
      prompt_segments: int32 `[D, M, P]`, 1, 2, ... number the prompts of a row; 0 is padding.
      prompt_positions: int32 `[D, M, P]`, position within the conversation (what rotary embeddings use).
      tokens: int32 `[D, N, R]`, inputs of the response rows.
      targets: int32 `[D, N, R]`, the next token at every input.
      positions: int32 `[D, N, R]`, position within the conversation.
      segments: int32 `[D, N, R]`, 1, 2, ... number the segments of a row; 0 is padding.
      parents: int32 `[D, N, R]`, the segment of the same row that this one continues; 0 is none.
      groups: int32 `[D, N, R]`, which segment of the prompt row this token may see; 0 is padding.
      slots: int32 `[D, N, R]`, `group * K + k` of the response whose log-prob the target belongs to, groups counted within the
        shard, or, with `spread`, within the batch; -1 where the target is not scored. With `ends`, marks the response's last
        token instead.
      prompt_row: int32 `[D, N]`, which prompt row a response row belongs to.
      mask: bool `[G, K]`, True for a response that exists.
      lengths: int32 `[G, K]`, how many targets of the response are scored.
      rows: int32 `[G]`, the data row a group came from; -1 for a padding group.
      labels: what the objective needs besides tokens, each with leading axis G (`scores` `[G, K]`, `ref_logps` `[G, K]`, ...).
      uniform: static; every prompt row has the same number of response rows, in order
        (`prompt_row[d] == repeat(arange(M), N // M)`), so that keys need not be gathered.
      packed: static; False promises one prompt per prompt row and one segment per response row (`parents` all 0).
      ends: static; True is the layout for scores (`reward_scores`), False that for log-probs (`logprobs`).
      per_response: static; the names of the labels whose axis after G is K.
      repeated: bool `[D, M, P]`, prompt positions that another prompt row holds too, where they are counted; None: there are
        none.
      spread: static; over how many shards, all of the batch, the tokens of its groups are spread, wherever the group stands in
        `[G, K]`; 1: each group's tokens are in the shard that its place in `[G, K]` belongs to.
    """

    prompt_tokens: Array
    prompt_segments: Array
    prompt_positions: Array
    tokens: Array
    targets: Array
    positions: Array
    segments: Array
    parents: Array
    groups: Array
    slots: Array
    prompt_row: Array
    mask: Array
    lengths: Array
    rows: Array
    labels: dict[str, Array]
    uniform: bool = dataclasses.field(default=False, metadata={"static": True})
    packed: bool = dataclasses.field(default=True, metadata={"static": True})
    ends: bool = dataclasses.field(default=False, metadata={"static": True})
    per_response: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    repeated: Array | None = None
    spread: int = dataclasses.field(default=1, metadata={"static": True})

    @property
    def group_labels(self) -> GroupLabels:
        """What an objective sees of it."""
        return GroupLabels(self.mask, self.lengths, self.labels)

    @property
    def scores(self) -> Array:
        """The scores `[G, K]`; KeyError where the batch has none."""
        return self.labels["scores"]

    def with_labels(self, **labels: Array) -> GroupBatch:
        """A copy with these labels added or replaced."""
        return dataclasses.replace(self, labels={**self.labels, **labels})


def computed_positions(batch: GroupBatch) -> int:
    """Positions that the model computes for this batch, padding included."""
    return int(np.prod(batch.prompt_tokens.shape) + np.prod(batch.tokens.shape))


def real_positions(batch: GroupBatch) -> int:
    """Positions of this (host) batch that hold a token, repeated prompts once; `1 - real / computed` is the padding."""
    again = 0 if batch.repeated is None else np.count_nonzero(batch.repeated)
    return int(np.count_nonzero(batch.prompt_segments) + np.count_nonzero(batch.segments) - again)


def useful_tokens(batch: GroupBatch) -> int:
    """Tokens of every response of this (host) batch together with its prompt: what is computed without prefix sharing."""
    slots, positions = np.asarray(batch.slots), np.asarray(batch.positions)
    shards = int(np.prod(slots.shape[:-2]))
    per_shard = max(np.asarray(batch.mask).size // shards, int(slots.max(initial=-1)) + 1)  # of a batch that is spread, all
    reach = np.zeros((shards, per_shard + 1), np.int64)  # the last column takes the targets that are not scored
    for shard, (index, position) in enumerate(zip(slots.reshape(shards, -1), positions.reshape(shards, -1), strict=True)):
        np.maximum.at(reach[shard], np.where(index < 0, per_shard, index), position + (1 if batch.ends else 2))
    return int(reach[:, :per_shard].sum())


def sizes(batch: GroupBatch) -> tuple[int, int, int, int, int]:
    """`(M, P, N, R, K)` of a batch."""
    return (*batch.prompt_tokens.shape[-2:], *batch.tokens.shape[-2:], batch.mask.shape[-1])


def pad_to(batch: GroupBatch, target: tuple[int, int, int, int, int]) -> GroupBatch:
    """The (host) batch with more padding, so that its sizes are `target`; no value and no gradient changes."""
    if sizes(batch) == tuple(target):
        return batch
    m, p, n, r, k = target

    def grow(array: np.ndarray, to: tuple[int, ...], fill: int = 0) -> np.ndarray:
        lead = array.ndim - len(to)
        width = [(0, 0)] * lead + [(0, t - s) for t, s in zip(to, array.shape[lead:], strict=True)]
        return np.pad(array, width, constant_values=fill)

    def grow_label(array: np.ndarray) -> np.ndarray:
        axis = batch.mask.ndim - 1  # K; a label may have more axes after it
        return grow(array, (k, *array.shape[axis + 1 :]))

    old_k = batch.mask.shape[-1]
    slots = np.where(batch.slots >= 0, batch.slots // old_k * k + batch.slots % old_k, -1).astype(np.int32)
    prompt = ("prompt_tokens", "prompt_segments", "prompt_positions", *(() if batch.repeated is None else ("repeated",)))
    fields = {name: grow(getattr(batch, name), (m, p)) for name in prompt}
    for name in ("tokens", "targets", "positions", "segments", "parents", "groups"):
        fields[name] = grow(getattr(batch, name), (n, r))
    fields["slots"] = grow(slots, (n, r), fill=-1)
    fields["prompt_row"] = grow(batch.prompt_row, (n,))
    for name in ("mask", "lengths"):
        fields[name] = grow(getattr(batch, name), (k,))
    labels = {name: grow_label(v) if name in batch.per_response else v for name, v in batch.labels.items()}
    same_rows = (batch.prompt_tokens.shape[-2], batch.tokens.shape[-2]) == (m, n)
    return dataclasses.replace(batch, **fields, labels=labels, uniform=batch.uniform and same_rows)
