"""What a step takes on a GPU by the way its rows are filled: packed rows by XLA's attention, or one response a row by cuDNN's.

Counted in operations of a dense product, forward and backward, by formula; no card was there to measure it. With i the
operations that a card makes while it moves a byte of its memory, E the head size, of a head

    a pair of tokens by XLA     14 E + 40 i      7 products of 2 E; logits and weights are written and read 10 times, float32
    a pair of tokens by cuDNN   1.5 x 14 E       the same products, at 2/3 of the rate of dense ones

XLA computes every pair of a row's tokens and of its whole prompt row (of the row's own, 5/8: early tokens see few);
cuDNN, which skips blocks, those that are visible. Every position costs its layers, and every one of a response row the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from align_jax.batch import computed_positions
from align_jax.cost.epoch import Step
from align_jax.cost.flops import forward_flops, peak_flops
from align_jax.models import ModelConfig

# Bytes per second of a card's memory (data sheets), by `device_kind`.
MEMORY_RATES = {"NVIDIA A100": 2.0e12, "NVIDIA H100": 3.35e12, "NVIDIA H200": 4.8e12, "NVIDIA B200": 8.0e12}
OTHER_INTENSITY = 250.0
_PRODUCTS, _BYTES, _KERNEL = 14, 40, 1.5


class RowsEstimate(NamedTuple):
    """Operations that steps take as long as: with packed rows by XLA, and with single ones by cuDNN."""

    packed: float
    single: float

    @property
    def packing_pays(self) -> bool:
        return self.packed < self.single


def intensity(device_kind: str) -> float:
    """Operations that a card makes in the time of moving a byte."""
    rate = next((rate for name, rate in MEMORY_RATES.items() if device_kind.startswith(name)), None)
    return OTHER_INTENSITY if rate is None else peak_flops(device_kind) / rate


def steps_cost(model: ModelConfig, steps: Sequence[Step], device_kind: str) -> float:
    """Operations that these steps take as long as, all together: by XLA where rows are packed, else by cuDNN."""
    return sum(_cost(model, step, intensity(device_kind)) for step in steps)


def _cost(model: ModelConfig, step: Step, i: float) -> float:
    *_, prompt_rows, prompt_length = step.batch.prompt_tokens.shape
    *shards, rows, length = step.batch.tokens.shape
    shards = int(np.prod(shards))
    layers = forward_flops(model, [1], [[]]).layers
    head = forward_flops(model, [0], [[1]]).head
    dense = 3 * (layers * computed_positions(step.batch) + head * shards * rows * length)
    heads, size = model.layers * model.heads, model.head_size
    if not step.batch.packed:
        pairs = step.forward.attention / (4 * heads * size)
        return dense + heads * pairs * _KERNEL * _PRODUCTS * size
    own = prompt_rows * prompt_length**2 + rows * length**2
    pairs = shards * (5 / 8 * own + rows * length * prompt_length)
    return dense + heads * pairs * (_PRODUCTS * size + _BYTES * i)
