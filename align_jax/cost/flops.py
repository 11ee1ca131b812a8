"""Floating-point operations of a training step by formula: the least possible, and what rematerialization adds.

A multiply and an add are two operations; only matrix products count. With L layers, width W, H query and Hk key/value
heads of size E, MLP width F (of a mixture that of a token's k experts together, and not of all X), vocabulary V:

    layer products of a token    2 L (2 W H E + 2 W Hk E + 3 W F)
    attention of a visible pair  4 L H E                            (logits, and values weighted by them)
    head of a scored position    2 W V                              (a reward model's, of a response: 2 W)
    routing of a token           2 L W X                            (of a mixture)

The prompt counts once for all its responses, and only visible pairs count: `m (m + 1) / 2` in a prompt of m tokens,
`n m + n (n + 1) / 2` for its response of n tokens. The gradient of a product is two products, so a step is at least
three times its forward pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from align_jax.batch import GroupBatch
from align_jax.data.records import TokenGroup
from align_jax.models import ModelConfig
from align_jax.models.adapter import A, B
from align_jax.models.kinds import mean_over_layers
from align_jax.models.weights import rows


@dataclasses.dataclass(frozen=True)
class Forward:
    """Operations of a forward pass, by part.

    `down` is the share of `layers` that the MLP's last product has, `frozen` what of all has no gradient of a weight.
    """

    layers: int
    down: int
    attention: int
    head: int
    frozen: int = 0

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
    tokens = sum(prompts) + sum(map(sum, responses))
    scored = sum(map(sum if config.head == "lm_head" else len, responses))
    pairs = sum(m * (m + 1) // 2 for m in prompts)
    pairs += sum(n * m + n * (n + 1) // 2 for m, group in zip(prompts, responses, strict=True) for n in group)
    return forward_of(config, tokens, pairs, scored)


def group_flops(config: ModelConfig, groups: Iterable[TokenGroup]) -> Forward:
    """The least operations of scoring groups, whatever rows they are packed in: every prompt, belief and answer once."""
    tokens = pairs = scored = 0
    for group in groups:
        m, lengths = len(group.prompt) - 1, [len(s.tokens) + group.ends for s in group.segments]
        before = [m + (lengths[s.parent] if s.parent >= 0 else 0) for s in group.segments]
        tokens += m + sum(lengths)
        runs = list(zip([0, *before], [m, *lengths], strict=True))
        pairs += mean_over_layers(config, lambda window, runs=runs: sum(_seen(at, n, window) for at, n in runs))
        scored += sum(1 if config.head == "score" else s.length for s in group.segments if s.slot >= 0)
    return forward_of(config, tokens, pairs, scored)


def _seen(before: int, count: int, window: int | None) -> int:
    """Keys that `count` tokens see, the first of which has `before` tokens before it."""
    whole = count if window is None else min(count, max(0, window - before))
    return whole * before + whole * (whole + 1) // 2 + (count - whole) * (window or 0)


def batch_flops(config: ModelConfig, batch: GroupBatch) -> Forward:
    """The least operations of scoring a (host) batch: its real tokens, repeated prompts once, as far as each sees."""
    first = np.asarray(batch.prompt_segments) > 0
    if batch.repeated is not None:
        first &= ~np.asarray(batch.repeated)
    reach = [
        np.asarray(positions)[counted].astype(np.int64) + 1
        for positions, counted in (
            (batch.prompt_positions, first),
            (batch.positions, np.asarray(batch.segments) > 0),
        )
    ]
    scored = int(np.count_nonzero(np.asarray(batch.slots) >= 0))
    most = np.iinfo(np.int32).max
    pairs = mean_over_layers(config, lambda window: int(sum(np.minimum(x, window or most).sum() for x in reach)))
    return forward_of(config, sum(map(len, reach)), pairs, scored)


def forward_of(config: ModelConfig, tokens: int, pairs: int, scored: int) -> Forward:
    """Operations of a forward pass over so many tokens, visible pairs of a query and a key, and scored positions."""
    c = config
    down = 2 * c.layers * c.width * c.computed_mlp_width * tokens
    projections = 2 * c.layers * c.width * (2 * c.head_size * (c.heads + c.kv_heads) + (c.experts or 0)) * tokens
    attention = 4 * c.layers * c.heads * c.head_size * pairs
    outputs = c.vocab_size if c.head == "lm_head" else 1
    layers, head = projections + 3 * down, 2 * c.width * outputs * scored
    if c.lora is None:
        return Forward(layers, down, attention, head)
    frozen = layers + (0 if {c.head, "embed"} & set(c.lora.saved) else head)
    return Forward(layers + _adapter_flops(c) * tokens, down, attention, head, frozen)


def _adapter_flops(config: ModelConfig) -> int:
    """Operations of an adapter for one token: two products of its rank."""
    found = {weight.path: weight for weight in rows(config)}
    pairs = (found["layers", f"{target}_{kind}"].shape(config) for target in config.lora.targets for kind in (A, B))
    return 2 * sum(map(math.prod, pairs))


def keys_per_position(config: ModelConfig) -> int:
    """How many attended keys cost as much as the rest of a response position, head included; what packing weighs."""
    position, key = forward_of(config, 1, 0, 1), forward_of(config, 0, 1, 0)
    return max(1, position.total // key.total)


# What a compilation of the step takes, in seconds, and how many operations a second it otherwise makes: (CPU, accelerators).
# Constants, and not what this machine reaches: shapes, and with them rounding, must not depend on the machine's mood.
_COMPILATION = {"cpu": (8.0, 1e11)}
_COMPILATION_ELSEWHERE = (40.0, 2e14)


def compilation_price(config: ModelConfig, platform: str) -> float:
    """What compiling one more shape of the training step costs, in attended keys: `seconds * speed / (3 * one key)`.

    Args:
      platform: of the devices: cpu, gpu or tpu.
    """
    seconds, speed = _COMPILATION.get(platform, _COMPILATION_ELSEWHERE)
    return seconds * speed / least_flops(forward_of(config, 0, 1, 0))


def least_flops(forward: Forward) -> int:
    """A step's least operations: `3 * forward`, nothing computed twice; no gradient of a weight that is not trained."""
    return 3 * forward.total - forward.frozen


# Dense operations per second of one device, in units of 1e12: of bfloat16 products, by `device_kind` (data sheets).
PEAK_TFLOPS = {
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5": 459,
    "TPU v6 lite": 918,
    "TPU7x": 1153.5,  # a chip is two devices
    "NVIDIA A100": 312,
    "NVIDIA H100": 989,
    "NVIDIA H200": 989,
    "NVIDIA B200": 2250,
}


def peak_flops(device_kind: str) -> float | None:
    """Operations per second that the maker of the device gives for bfloat16; None for a device that is not known."""
    known = max((name for name in PEAK_TFLOPS if device_kind.startswith(name)), key=len, default=None)
    return None if known is None else PEAK_TFLOPS[known] * 1e12


def remat_flops(forward: Forward, policy: str, *, chunks: bool = False, head: bool = True) -> int:
    """Operations that a step repeats by choice.

    - the head once, unless its logits are kept (`model.head_chunk`);
    - `full`: the layers and attention once, except the MLP's last product, which no gradient needs;
    - `dots` and `offload`: no product;
    - response rows in chunks (`rows_per_chunk`): all once more (an upper bound: of responses only).

    Args:
      forward: from `forward_flops`.
      policy: a key of `align_jax.models.remat.POLICIES`.
      chunks: whether responses are scored in chunks. head: whether logits are made again.

    Raises:
      ValueError: an unknown policy.
    """
    again = {
        "none": 0,
        "dots": 0,
        "offload": 0,
        "full": forward.layers - forward.down + forward.attention,
    }
    if policy not in again:
        raise ValueError(f"unknown rematerialization policy {policy!r}; known: {', '.join(again)}")
    return head * forward.head + again[policy] + chunks * forward.total
