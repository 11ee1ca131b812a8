"""Floating-point operations of a training step by formula: the least possible, and what rematerialization adds.

A multiply and an add are two operations; only matrix products count. With L layers, width W, H query and Hk key/value
heads of size E, MLP width F, vocabulary V:

    layer products of a token    2 L (2 W H E + 2 W Hk E + 3 W F)
    attention of a visible pair  4 L H E                            (logits, and values weighted by them)
    head of a scored position    2 W V

The prompt counts once for all its responses, and only visible pairs count: `m (m + 1) / 2` in a prompt of m tokens,
`n m + n (n + 1) / 2` for its response of n tokens. The gradient of a product is two products, so a step is at least
three times its forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from align_jax.models import ModelConfig


@dataclasses.dataclass(frozen=True)
class Forward:
    """Operations of a forward pass, by part; `down` is the share of `layers` that the MLP's last product has."""

    layers: int
    down: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        return self.layers + self.attention + self.head


def forward_flops(config: ModelConfig, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> Forward:
    """The least operations of scoring groups.

    Args:
      config: the model.
      prompts: tokens of each prompt row (a prompt without its last token, see `align_jax.batch`).
      responses: tokens of each of its responses.
    """
    c, scored = config, sum(map(sum, responses))
    tokens = sum(prompts) + scored
    pairs = sum(m * (m + 1) // 2 for m in prompts)
    pairs += sum(n * m + n * (n + 1) // 2 for m, group in zip(prompts, responses, strict=True) for n in group)
    down = 2 * c.layers * c.width * c.mlp_width * tokens
    projections = 2 * c.layers * 2 * c.width * c.head_size * (c.heads + c.kv_heads) * tokens
    attention = 4 * c.layers * c.heads * c.head_size * pairs
    return Forward(projections + 3 * down, down, attention, 2 * c.width * c.vocab_size * scored)


def least_flops(forward: Forward) -> int:
    """A step's least operations: `3 * forward`, nothing computed twice."""
    return 3 * forward.total


def remat_flops(forward: Forward, policy: str, *, chunks: bool = False, attention_saved: bool = True) -> int:
    """Operations that a step repeats by choice.

    - the head once, always: its logits are not kept;
    - `full`: the layers and attention once, except the MLP's last product, which no gradient needs;
    - `offload`, and `dots` where attention keeps nothing: attention once;
    - response rows in chunks (`rows_per_chunk`): the layers and attention once more (an upper bound: of responses only).

    Args:
      forward: from `forward_flops`.
      policy: a key of `align_jax.models.remat.POLICIES`.
      chunks: whether responses are scored in chunks.
      attention_saved: whether `dots` finds attention's output by name: flash kernels, not XLA's.

    Raises:
      ValueError: an unknown policy.
    """
    again = {
        "none": 0,
        "dots": 0 if attention_saved else forward.attention,
        "offload": forward.attention,
        "full": forward.layers - forward.down + forward.attention,
    }
    if policy not in again:
        raise ValueError(f"unknown rematerialization policy {policy!r}; known: {', '.join(again)}")
    return forward.head + again[policy] + (forward.layers + forward.attention if chunks else 0)
