"""Belief-first generation (GDPO, arXiv 2412.20299): draw a belief from `pi(b|x)`, then the text from `pi(y|b,x)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from align_jax.data import RowLayout, Segment, TokenGroup, pack_groups
from align_jax.errors import UserError
from align_jax.generation.api import by_prompt, check_counts, watch_maker
from align_jax.generation.engine import ROWS, check_keys, run_requests
from align_jax.generation.sampling import Sampling
from align_jax.generation.slots import Request, Sample, Stop
from align_jax.models import Decoder, ModelConfig
from align_jax.parallel.axes import constrain
from align_jax.parallel.mesh import batch_sharding, data_shards, make_mesh
from align_jax.scoring.logps import response_logps
from align_jax.terminal import Watch

_BELIEF_STEP = 2**31 - 1  # keys the draw of the belief apart from the draws of tokens, which count from 0
_GROUPS = 32  # prompts of a shard whose beliefs are scored at one time


@dataclasses.dataclass(frozen=True)
class BeliefSample:
    """A belief (index), its probability in the prompt's distribution, and the text conditioned on it."""

    belief: int
    probability: float
    sample: Sample


@dataclasses.dataclass(frozen=True)
class BeliefResult:
    """A prompt's predicted beliefs and its samples.

    Attributes:
      logps: float32 `[N]`, `log pi(b|x)` of every belief statement, summed over its tokens.
      distribution: float64 `[N]`, `pi(b|x)` renormalised over the beliefs: `softmax(logps)`.
      mass: `sum_b pi(b|x)`, the probability that the model gives to the beliefs together.
      samples: the texts with their beliefs.
    """

    logps: np.ndarray
    distribution: np.ndarray
    mass: float
    samples: list[BeliefSample]


def belief_logps(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    beliefs: Sequence[Sequence[Sequence[int]]],
    *,
    mesh: Mesh | None = None,
    done: Callable[[int], object] = lambda prompts: None,
) -> list[np.ndarray]:
    """`log pi(b|x)` of the belief statements of each prompt.

    Args:
      prompts: token ids, at least one each.
      beliefs: the belief statements of each prompt, token ids, at least one each; their number may differ.
      mesh: where the weights are; None is the default device.
      done: told how many more prompts have theirs.

    Returns:
      For each prompt float32 `[N]`, summed over the statement's tokens.

    Raises:
      UserError: a prompt or belief without tokens, a prompt without beliefs.
    """
    groups = [_group(i, prompt, of_prompt) for i, (prompt, of_prompt) in enumerate(zip(prompts, beliefs, strict=True))]
    mesh = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    shards, params = data_shards(mesh), model.weights()
    result: list[np.ndarray] = [np.empty(0, np.float32)] * len(groups)
    per_shard = min(_GROUPS, -(-len(groups) // shards))
    for start in range(0, len(groups), shards * _GROUPS):
        now = groups[start : start + shards * _GROUPS]
        batch = pack_groups(now, shards=shards, groups_per_shard=per_shard, layout=RowLayout(pack=False))
        with jax.set_mesh(mesh):
            logps = np.asarray(
                _score(params, jax.device_put(batch, batch_sharding(mesh)), config=model.config, dtype=str(model.dtype))
            )
        for row, values in zip(batch.rows, logps, strict=True):
            if row >= 0:
                result[row] = values[: groups[row].slots]
        done(len(now))
    return result


@partial(jax.jit, static_argnames=("config", "dtype"))
def _score(params: dict, batch, *, config: ModelConfig, dtype: str) -> jax.Array:
    return constrain(response_logps(Decoder(config, params, dtype=dtype), batch), None, None)


def _group(index: int, prompt: Sequence[int], beliefs: Sequence[Sequence[int]]) -> TokenGroup:
    if not len(prompt) or not len(beliefs) or not all(len(b) for b in beliefs):
        raise UserError(f"prompt {index}: the prompt and each of its beliefs (at least one) need at least one token")
    segments = tuple(Segment(np.asarray(b, np.int32), k) for k, b in enumerate(beliefs))
    return TokenGroup(index, np.asarray(prompt, np.int32), segments, len(segments), {})


def generate_beliefs(
    model: Decoder, prompts: Sequence[Sequence[int]], beliefs: Sequence[Sequence[Sequence[int]]], **options
) -> list[BeliefResult]:
    """The beliefs and texts of all prompts, in order; see `stream_beliefs` for the options."""
    return [result for _, result in sorted(stream_beliefs(model, prompts, beliefs, **options), key=lambda pair: pair[0])]


def stream_beliefs(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    beliefs: Sequence[Sequence[Sequence[int]]],
    *,
    samples: int = 1,
    max_new_tokens: int,
    fixed: Sequence[int | None] | None = None,
    belief_temperature: float = 1.0,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    eos_ids: Iterable[int] = (),
    never: Iterable[int] = (),
    stop: Stop | None = None,
    seed: int = 0,
    prompt_ids: Sequence[int] | None = None,
    mesh: Mesh | None = None,
    rows: int = ROWS,
    progress: bool | Callable[[str, int, str], Watch] = False,
) -> Iterator[tuple[int, BeliefResult]]:
    """Two-stage sampling, `b ~ pi(b|x)`, `y ~ pi(y|b,x)`; yields (index of the prompt, result) as prompts finish.

    Args:
      beliefs: the belief statements that each prompt chooses from, token ids.
      samples: how many of each prompt; each draws its own belief.
      max_new_tokens: of each text, the belief statement not counted.
      fixed: for each prompt the index of the belief that its texts are conditioned on, or None to draw it.
      belief_temperature: beliefs are drawn from `softmax(log pi(b|x) / belief_temperature)`; 0 takes the most likely one.
        `sampling` is of the texts alone.
      others: as in `align_jax.generation.stream`.

    Raises:
      UserError: as `belief_logps` and `stream`; a fixed belief that does not exist.
    """
    check_counts(samples=samples, max_new_tokens=max_new_tokens)
    if belief_temperature < 0:
        raise UserError(f"belief_temperature must be 0 or more, got {belief_temperature}")
    fixed = [None] * len(prompts) if fixed is None else fixed
    for i, (choice, options) in enumerate(zip(fixed, beliefs, strict=True)):
        if choice is not None and not 0 <= choice < len(options):
            raise UserError(f"prompt {i}: belief {choice} does not exist; there are 0 to {len(options) - 1}")
    ids = list(range(len(prompts)) if prompt_ids is None else prompt_ids)
    check_keys(seed, ids)
    with watch_maker(progress)("scoring beliefs", len(prompts), "prompts") as watch:
        logps = belief_logps(model, prompts, beliefs, mesh=mesh, done=watch.add)
    drawn = _draw(logps, fixed, ids, samples, belief_temperature, seed)
    requests = [
        Request(i, [*prompt, *beliefs[i][b]], ids[i], tuple(np.flatnonzero(drawn[i] == b).tolist()), max_new_tokens)
        for i, prompt in enumerate(prompts)
        for b in np.unique(drawn[i]).tolist()
    ]
    how = {"sampling": sampling, "eos_ids": eos_ids, "never": never, "stop": stop, "seed": seed, "mesh": mesh, "rows": rows}
    results = run_requests(model, requests, **how)
    for i, texts in by_prompt(results, len(prompts), samples, progress):
        yield i, _result(logps[i], drawn[i].tolist(), texts)


def _draw(logps, fixed, ids, samples: int, temperature: float, seed: int) -> list[np.ndarray]:
    """For each prompt the belief of each sample, int `[samples]`, keyed like the tokens by (seed, prompt, sample)."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))

    def uniforms(prompt_id):
        keys = fold(jax.random.fold_in(jax.random.key(seed), prompt_id), np.arange(samples))
        return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, _BELIEF_STEP)))(keys)

    noise = np.asarray(jax.vmap(uniforms)(np.asarray(ids, np.int32)), np.float64)
    drawn = []
    for values, choice, u in zip(logps, fixed, noise, strict=True):
        if choice is not None or temperature == 0:
            drawn.append(np.full(samples, np.argmax(values) if choice is None else choice))
            continue
        cumulative = np.cumsum(_softmax(values / temperature))
        drawn.append(np.minimum(np.searchsorted(cumulative, u, side="right"), len(values) - 1))
    return drawn


def _softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values.astype(np.float64) - values.max())
    return weights / weights.sum()


def _result(logps: np.ndarray, drawn: list[int], texts: list[Sample]) -> BeliefResult:
    distribution = _softmax(logps)
    samples = [BeliefSample(b, float(distribution[b]), text) for b, text in zip(drawn, texts, strict=True)]
    return BeliefResult(logps, distribution, float(np.exp(logps.astype(np.float64)).sum()), samples)
