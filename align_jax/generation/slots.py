"""Which row of the batch works on which sample: the host's side of continuous refill.

A slot holds up to S prompts and has C rows; each row works on one sample of one of the slot's prompts. A row that is
done takes the next sample of the slot's prompts, and a prompt without samples left makes room for the next one, so a
long sample holds its own row and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Container, Iterator

import numpy as np

from align_jax.generation.device import RowStates

Stop = Callable[[list[int], int], int | None]


@dataclasses.dataclass(frozen=True)
class Request:
    """Samples that are wanted of one prompt.

    Attributes:
      index: the caller's name for it. tokens: the prompt, at least one token. prompt_id: what its randomness is keyed by.
      sample_ids: one sample each. max_new_tokens: of each.
    """

    index: int
    tokens: list[int]
    prompt_id: int
    sample_ids: tuple[int, ...]
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """A generated response.

    Attributes:
      tokens: int32 `[n]`, with the end-of-sequence token where there is one.
      logps: float32 `[n]`, log-probability of every token under the model itself, whatever the sampling was.
      finish_reason: `eos` (an end token), `stop` (a stop string, which the tokens end with or just after), or `length`.
    """

    tokens: np.ndarray
    logps: np.ndarray
    finish_reason: str

    @property
    def logp(self) -> float:
        """Log-probability of the response, as `response_logps` has it."""
        return float(self.logps.sum())


class _Job:
    """A request in its place: samples that no row has taken yet, and rows that work on it."""

    def __init__(self, request: Request):
        self.request, self.waiting, self.working = request, deque(request.sample_ids), 0


class _Work:
    """A row's sample so far."""

    def __init__(self, job: _Job, sample_id: int):
        self.job, self.sample_id, self.tokens, self.logps = job, sample_id, [], []


class Slots:
    """The batch's rows, slots and prompts.

    Args:
      shards, slots, prompts, rows: D, M, S and N (rows of a shard, a multiple of `slots`).
    """

    def __init__(self, shards: int, slots: int, prompts: int, rows: int):
        self.per_slot = rows // slots
        self.jobs: dict[tuple[int, int], list[_Job | None]] = {
            (d, m): [None] * prompts for m in range(slots) for d in range(shards)
        }
        self.work: dict[tuple[int, int], _Work] = {}
        zeros = [np.zeros((shards, rows), np.int32) for _ in range(6)]
        tokens, steps, which, left, prompt_ids, sample_ids = zeros
        self.rows = RowStates(tokens, steps, which, np.zeros((shards, slots, prompts), np.int32), left, prompt_ids, sample_ids)

    @property
    def busy(self) -> bool:
        """Whether any row has something to do."""
        return bool(self.work)

    def place(self, queue: deque[Request]) -> list[tuple[int, int, int, Request]]:
        """Gives requests to slots with room, emptiest first.

        Returns:
          (shard, slot, place in the slot, request) of each, for its prompt to be loaded there.
        """
        placed = []
        load = {at: sum(len(job.waiting) + job.working for job in jobs if job) for at, jobs in self.jobs.items()}
        while queue:
            free = [at for at, jobs in self.jobs.items() if None in jobs]
            if not free:
                break
            at = min(free, key=load.__getitem__)
            place, request = self.jobs[at].index(None), queue.popleft()
            self.jobs[at][place] = _Job(request)
            load[at] += len(request.sample_ids)
            self.rows.lengths[(*at, place)] = len(request.tokens) - 1
            placed.append((*at, place, request))
        return placed

    def assign(self) -> None:
        """Gives samples to idle rows."""
        for (shard, slot), jobs in self.jobs.items():
            idle = [n for n in range(slot * self.per_slot, (slot + 1) * self.per_slot) if (shard, n) not in self.work]
            for place, job in enumerate(jobs):
                while job and job.waiting and idle:
                    self._start((shard, idle.pop(0)), place, job)

    def _start(self, at: tuple[int, int], place: int, job: _Job) -> None:
        work = _Work(job, job.waiting.popleft())
        job.working += 1
        self.work[at] = work
        rows, request = self.rows, job.request
        rows.tokens[at], rows.steps[at], rows.prompts[at] = request.tokens[-1], 0, place
        rows.left[at], rows.prompt_ids[at], rows.sample_ids[at] = request.max_new_tokens, request.prompt_id, work.sample_id

    def collect(
        self, tokens: np.ndarray, logps: np.ndarray, eos_ids: Container[int], stop: Stop | None
    ) -> Iterator[tuple[Request, int, Sample]]:
        """Takes in what a call generated (`[steps, D, N]` each); yields (request, sample id, sample) where one is done.

        Args:
          stop: tokens so far and how many of them are new -> how many to keep, or None to go on; or None.
        """
        counts = (tokens >= 0).sum(0)
        for at, work in list(self.work.items()):
            new = counts[at]
            work.tokens += tokens[(slice(new), *at)].tolist()
            work.logps += logps[(slice(new), *at)].tolist()
            self.rows.steps[at] += new
            self.rows.left[at] -= new
            self.rows.tokens[at] = work.tokens[-1]
            reason = "eos" if work.tokens[-1] in eos_ids else "length" if self.rows.left[at] == 0 else None
            keep = stop(work.tokens, int(new)) if stop else None
            if keep is not None and (keep < len(work.tokens) or reason != "eos"):
                reason, work.tokens, work.logps = "stop", work.tokens[:keep], work.logps[:keep]
            if reason:
                yield work.job.request, work.sample_id, self._finish(at, work, reason)

    def _finish(self, at: tuple[int, int], work: _Work, reason: str) -> Sample:
        del self.work[at]
        self.rows.left[at] = 0
        work.job.working -= 1
        if not work.job.waiting and not work.job.working:
            jobs = self.jobs[at[0], at[1] // self.per_slot]
            jobs[jobs.index(work.job)] = None
        return Sample(np.asarray(work.tokens, np.int32), np.asarray(work.logps, np.float32), reason)
