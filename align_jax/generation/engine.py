"""Sampling with continuous refill: requests in, samples out as they finish."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from align_jax.errors import UserError
from align_jax.generation import device
from align_jax.generation.sampling import Sampling
from align_jax.generation.slots import Request, Sample, Slots, Stop
from align_jax.models import Decoder
from align_jax.parallel.mesh import data_shards
from align_jax.parallel.stop import leave_if_asked

STEPS = 16  # decoding steps between two looks of the host
ROWS = 256  # samples in flight
_SLOT_ROWS = 16  # rows that share a slot's prompts, where there are enough prompts
_LOAD_ROWS = 8  # prompts that a shard computes at one time
_LENGTHS = 4  # how many lengths of the ring are compiled
_SHORT = 32  # columns; a ring has no fewer


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """D, M, S, P, N and T of `align_jax.models.cache`."""

    shards: int
    slots: int
    prompts: int
    prompt_length: int
    rows: int
    length: int


def check_keys(seed: int, prompt_ids: Iterable[int]) -> None:
    """UserError for a seed or an id of a prompt that has no place in a key of random numbers."""
    for name, value, bits in [("seed", seed, 32), *(("prompt_ids", number, 31) for number in prompt_ids)]:
        if not 0 <= value < 2**bits:
            raise UserError(f"{name}: {value} must be from 0 to 2^{bits} - 1")


def run_requests(
    model: Decoder,
    requests: Sequence[Request],
    *,
    sampling: Sampling,
    eos_ids: Iterable[int] = (),
    never: Iterable[int] = (),
    stop: Stop | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    rows: int = ROWS,
) -> Iterator[tuple[Request, int, Sample]]:
    """Samples all requests; yields (request, sample id, sample) in the order in which they finish.

    A sample depends on the weights, its prompt, the sampling, the seed, `prompt_id` and `sample_id` alone; neither on the
    mesh nor on what else is in the batch (to the rounding of the logits).

    Args:
      eos_ids: tokens that end a text. never: tokens that are not drawn, see `text.absent_ids`; log-probs are the model's own.
      stop: called as `stop(tokens so far, how many of them are new)`; returns how many to keep, or None to go on.
      mesh: where the weights are; None is the default device.
      rows: samples in flight, over all devices.

    Raises:
      UserError: a prompt that is empty or leaves no room in the model's context; no token that may be drawn.
    """
    if rows < 1:
        raise UserError(f"rows must be at least 1, got {rows}")
    check_keys(seed, (request.prompt_id for request in requests))
    requests = [_fit(model, request) for request in requests if request.sample_ids]
    if not requests:
        return
    shards = data_shards(mesh) if mesh is not None else 1
    requests = _spread(requests, shards)
    geometry = _geometry(requests, shards, rows)
    eos_ids = tuple(sorted(set(map(int, eos_ids))))
    program = device.Program(model.config, str(model.dtype), sampling, eos_ids, STEPS, _runs(model, never, eos_ids))
    yield from _Run(model.weights(), program, geometry, seed, mesh).all(requests, stop)


class _Run:
    def __init__(self, params: dict, program: device.Program, geometry: _Geometry, seed: int, mesh: Mesh | None):
        self.params, self.program, self.geometry, self.mesh = params, program, geometry, mesh
        self.key = jax.random.key(seed)
        self.clock = 0
        g = geometry
        self.slots = Slots(g.shards, g.slots, g.prompts, g.rows)
        # A short ring is fast: it grows with the clock, in few steps, until it has room for the longest text.
        self.unit = max(_SHORT, -(-g.length // _LENGTHS))
        self.length = min(g.length, self.unit)
        with self._on_mesh():
            shape = (*dataclasses.astuple(g)[:-1], self.length)
            self.state = device.create(params, program=program, shape=shape)

    def _on_mesh(self):
        # Entered for every call and not for the whole run, which yields to the caller in between.
        return jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext()

    def all(self, requests: Sequence[Request], stop: Stop | None) -> Iterator[tuple[Request, int, Sample]]:
        queue = deque(requests)
        while True:
            self._load(self.slots.place(queue))
            if not self.slots.busy:
                self.clock = 0  # nothing in the ring is needed any more
            self.slots.assign()
            if not self.slots.busy:
                return
            tokens, logps = self._decode()
            leave_if_asked()
            yield from self.slots.collect(tokens, logps, self.program.eos_ids, stop)

    def _decode(self) -> tuple[np.ndarray, np.ndarray]:
        needed = min(self.geometry.length, -(-(self.clock + self.program.steps) // self.unit) * self.unit)
        with self._on_mesh():
            if needed > self.length:
                self.state, self.length = device.grow(self.state, length=needed), needed
            self.state, tokens, logps = device.decode(
                self.params, self.state, self.slots.rows, self.key, np.int32(self.clock), program=self.program
            )
            tokens, logps = jax.device_get((tokens, logps))
        self.clock += int((tokens >= 0).any((1, 2)).sum())
        return tokens, logps

    def _load(self, placed: list[tuple[int, int, int, Request]]) -> None:
        g = self.geometry
        rows = min(g.slots * g.prompts, _LOAD_ROWS)
        waiting = [[p for p in placed if p[0] == d] for d in range(g.shards)]
        while any(waiting):
            now = [shard[:rows] for shard in waiting]
            waiting = [shard[rows:] for shard in waiting]
            longest = max(len(p[3].tokens) for shard in now for p in shard)
            tokens = np.zeros((g.shards, rows, min(_power(longest - 1, 64), g.prompt_length) + 1), np.int32)
            lengths, prompts = np.ones((g.shards, rows), np.int32), np.zeros((g.shards, rows), np.int32)
            slots = np.full((g.shards, rows), g.slots, np.int32)  # one past the last: not written
            for d, shard in enumerate(now):
                for r, (_, slot, place, request) in enumerate(shard):
                    tokens[d, r, : len(request.tokens)] = request.tokens
                    lengths[d, r], slots[d, r], prompts[d, r] = len(request.tokens), slot, place
            with self._on_mesh():
                self.state = device.load(self.params, self.state, tokens, lengths, slots, prompts, program=self.program)


def _fit(model: Decoder, request: Request) -> Request:
    """The request with no more tokens than the context has room for."""
    room, vocab = model.config.max_length - len(request.tokens), model.config.vocab_size
    if outside := [token for token in request.tokens if not 0 <= token < vocab]:
        raise UserError(f"prompt {request.index} has the token {outside[0]}, but the model's vocabulary is 0 to {vocab - 1}")
    if not request.tokens:
        raise UserError(f"prompt {request.index} is empty; a prompt needs at least one token (such as BOS)")
    if room < 1:
        raise UserError(
            f"prompt {request.index} has {len(request.tokens)} tokens, which leaves no room in the model's context of "
            f"{model.config.max_length}; shorten it to at most {model.config.max_length - 1}"
        )
    return dataclasses.replace(request, max_new_tokens=min(request.max_new_tokens, room))


def _runs(model: Decoder, never: Iterable[int], eos_ids: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(first, one past the last) of each run of ids that are not drawn: thousands of ids are few runs. Ends of texts stay."""
    vocab = model.config.vocab_size
    ids = sorted({int(token) for token in never if 0 <= token < vocab} - set(eos_ids))
    if len(ids) == vocab:
        raise UserError(f"never: all {vocab} tokens of the model's vocabulary are excluded; none is left to be drawn")
    starts = [token for before, token in itertools.pairwise([-2, *ids]) if token != before + 1]
    ends = [token + 1 for token, after in itertools.pairwise([*ids, vocab + 1]) if token + 1 != after]
    return tuple(zip(starts, ends, strict=True))


def _spread(requests: list[Request], shards: int) -> list[Request]:
    """With fewer prompts than shards, each prompt's samples are split, so that every shard has some."""
    parts = -(-shards // len(requests))
    if parts == 1:
        return requests
    split = (dataclasses.replace(r, sample_ids=r.sample_ids[i::parts]) for r in requests for i in range(parts))
    return [request for request in split if request.sample_ids]


def _geometry(requests: Sequence[Request], shards: int, rows: int) -> _Geometry:
    most = max(len(r.sample_ids) for r in requests)
    per_shard = -(-len(requests) // shards)
    rows = max(1, rows // shards)
    per_slot = min(most, rows, max(_SLOT_ROWS, rows // per_shard))
    slots = max(1, min(per_shard, rows // per_slot))
    longest = max(len(r.tokens) for r in requests)
    new = max(r.max_new_tokens for r in requests)
    return _Geometry(
        shards=shards,
        slots=slots,
        # A second place lets rows go on with the next prompt while others finish the first.
        prompts=1 if slots >= per_shard else 2,
        prompt_length=_round(longest - 1),
        rows=slots * per_slot,
        length=_round(new),
    )


def _power(n: int, least: int = 16) -> int:
    """The next power of two, but no less than `least`."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def _round(n: int) -> int:
    """Up to a multiple of an eighth of the next power of two, at least 16: few shapes, little padding."""
    unit = max(16, _power(n) // 8)
    return max(unit, -(-n // unit) * unit)
