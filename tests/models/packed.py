"""Packed rows and what is visible in them, token by token as `align_jax.batch` says, and attention over it in float64."""

from __future__ import annotations

import dataclasses

import numpy as np

from align_jax.data import RowLayout, Segment, TokenGroup, pack_groups
from align_jax.data.packing.plan import Shape
from align_jax.models.attention import Tokens


def groups(count=5, beliefs=True, seed=0, longest=(7, 6)):
    """Groups of 2 to 4 segments, some of them texts that continue a belief; prompts of one token leave nothing to see."""
    rng = np.random.default_rng(seed)
    some = lambda most: rng.integers(0, 29, rng.integers(1, most + 1)).astype(np.int32)  # noqa: E731
    made = []
    for g in range(count):
        segments = [Segment(some(longest[1]), k, -1) for k in range(rng.integers(1, 3))]
        if beliefs:
            segments += [Segment(some(longest[1]), len(segments) + k, 0) for k in range(rng.integers(0, 3))]
        prompt = some(1 if g == 1 else longest[0])
        made.append(TokenGroup(g, prompt, tuple(segments), len(segments), {}))
    return made


def batch(shards=1, prompt_length=16, length=24, **options):
    """A packed batch with several prompts and several segments in a row, and rows of padding."""
    made = groups(**options)
    shapes = tuple(Shape(m, prompt_length, n, length) for m in range(2, 6) for n in (m + 1, m + 4))
    return pack_groups(made, shards=shards, groups_per_shard=-(-len(made) // shards), layout=RowLayout(shapes=shapes))


def tokens(made):
    """(of the rows, of the prompts), as `visibility` takes them."""
    rows = Tokens(made.positions, made.segments, made.parents, made.groups)
    return rows, Tokens(made.prompt_positions, made.prompt_segments)


def visible(made, window=None):
    """bool `[D, N, R, N R]` and `[D, N, R, M P]`: what of all its shard's rows and prompts each token sees."""
    shards, rows, length = made.tokens.shape
    own = np.zeros((shards, rows, length, rows, length), bool)
    prompt = np.zeros((shards, rows, length, *made.prompt_tokens.shape[1:]), bool)
    for d, n, r in np.ndindex(shards, rows, length):
        segment, at = made.segments[d, n, r], made.positions[d, n, r]
        if segment == 0:
            continue
        near = lambda position, at=at: window is None or at - position < window  # noqa: E731
        for k in range(r + 1):
            seen = made.segments[d, n, k] in {segment, made.parents[d, n, r]} - {0}
            own[d, n, r, n, k] = seen and near(made.positions[d, n, k])
        m = made.prompt_row[d, n]
        for k in range(prompt.shape[-1]):
            seen = made.prompt_segments[d, m, k] == made.groups[d, n, r] != 0
            prompt[d, n, r, m, k] = seen and near(made.prompt_positions[d, m, k])
    return own.reshape(*own.shape[:3], -1), prompt.reshape(*prompt.shape[:3], -1)


@dataclasses.dataclass(frozen=True)
class Reference:
    """Attention over what is visible; float64, a head at a time, with the gradients of `sum(out * d_out)`."""

    own: np.ndarray
    prompt: np.ndarray
    cap: float | None = None

    def __call__(self, d_out, q, k, v, prefix_k, prefix_v, sinks=None):
        """(out, gradients of q, k, v, prefix_k, prefix_v, and of sinks `[H]` where there are some)."""
        arrays = [np.asarray(x, np.float64) for x in (q, k, v, prefix_k, prefix_v)]
        q, *keys = (x.reshape(x.shape[0], -1, *x.shape[3:]) for x in arrays)
        d_out = np.asarray(d_out, np.float64).reshape(q.shape)
        seen = np.concatenate([self.own, self.prompt], axis=-1).reshape(q.shape[0], q.shape[1], -1)
        out, grads, group = np.zeros_like(q), [np.zeros_like(x) for x in (q, *keys)], q.shape[2] // keys[0].shape[2]
        split, of_sinks = keys[0].shape[1], np.zeros(q.shape[2])
        for d, h in np.ndindex(q.shape[0], q.shape[2]):
            own_k, own_v, prompt_k, prompt_v = (x[d, :, h // group] for x in keys)
            k, v = np.concatenate([own_k, prompt_k]), np.concatenate([own_v, prompt_v])
            scale = q.shape[-1] ** -0.5
            logits = q[d, :, h] @ k.T * scale
            slope = 1.0
            if self.cap is not None:
                logits = self.cap * np.tanh(logits / self.cap)
                slope = 1 - (logits / self.cap) ** 2
            p = np.where(seen[d], np.exp(logits), 0)
            total = p.sum(axis=1, keepdims=True) + (0 if sinks is None else np.exp(float(sinks[h])))
            p = p / np.where(total > 0, total, 1)
            out[d, :, h] = p @ v
            d_p = d_out[d, :, h] @ v.T
            if sinks is not None:
                of_sinks[h] -= np.sum(np.exp(float(sinks[h])) / total[:, 0] * np.sum(p * d_p, axis=1))
            d_logits = p * (d_p - np.sum(p * d_p, axis=1, keepdims=True)) * slope * scale
            grads[0][d, :, h] = d_logits @ k
            for own, prompt, grad in ((1, 3, d_logits.T @ q[d, :, h]), (2, 4, p.T @ d_out[d, :, h])):
                grads[own][d, :, h // group] += grad[:split]
                grads[prompt][d, :, h // group] += grad[split:]
        grads = [g.reshape(x.shape) for g, x in zip(grads, arrays, strict=True)]
        return out.reshape(arrays[0].shape), grads if sinks is None else [*grads, of_sinks]
