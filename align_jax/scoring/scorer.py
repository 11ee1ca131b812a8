"""How responses are scored in a run, and their scores under fixed weights."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from align_jax.batch import GroupBatch, GroupLabels
from align_jax.data.packing.lengths import length_batches
from align_jax.data.records import TokenGroup
from align_jax.models import Decoder, ModelConfig
from align_jax.models.quantized import kind_of
from align_jax.parallel.mesh import batch_sharding, data_shards, put_batch, put_whole_batch, replicated
from align_jax.parallel.tpu_flags import compiler_options
from align_jax.scoring.chunks import head_that_fits, position_bytes, rows_that_fit
from align_jax.scoring.logps import HEAD_CHUNK, ResponseSums, scored_logps
from align_jax.scoring.scores import scores_and_load


@dataclasses.dataclass(frozen=True)
class Scorer:
    """How responses are scored: the model's shape and numerics, and the chunks; static for a run.

    Attributes:
      rows_per_chunk, head_chunk: `auto` is as many as fit by `chunks.rows_that_fit` and `chunks.head_that_fits`; rows None
        is all.
      memory: bytes of a device that activations may take; None where that is not known. tensor: devices that share heads, MLP
        and vocabulary. sequence: devices that share the positions of a row.
      expert: devices that share experts. router_aux_weight: of the load-balancing loss in training, for a mixture.
    """

    config: ModelConfig
    dtype: str = "bfloat16"
    remat: str = "none"
    attention: str = "auto"
    rows_per_chunk: int | Literal["auto"] | None = "auto"
    head_chunk: int | Literal["auto"] = "auto"
    memory: int | None = None
    tensor: int = 1
    sequence: int = 1
    expert: int = 1
    router_aux_weight: float = 0.0

    def chunk(self, batch: GroupBatch) -> int | None:
        """Response rows of a shard that are computed at one time for a batch of this shape; None: all."""
        if self.rows_per_chunk != "auto":
            return self.rows_per_chunk
        if self.memory is None:
            return None
        least = HEAD_CHUNK if self.head_chunk == "auto" else self.head_chunk
        return rows_that_fit(*self._shapes(batch), self._each(), self.memory, (least, self._vocabulary()))

    def head(self, batch: GroupBatch) -> int:
        """Positions of a shard whose logits exist at one time for a batch of this shape; no fewer than there are: all."""
        if self.head_chunk != "auto":
            return self.head_chunk
        (rows, length), prompts = self._shapes(batch)
        positions = min(rows, self.chunk(batch) or rows) * length
        computed = positions + math.prod(prompts)
        left = None if self.memory is None else self.memory - computed * self._each()
        return head_that_fits(positions, self._vocabulary(), left, HEAD_CHUNK)

    def head_twice(self, batch: GroupBatch) -> bool:
        """Whether the head's logits are not kept for the backward pass, but made again."""
        (rows, length), _ = self._shapes(batch)
        return self.config.head == "lm_head" and self.head(batch) < min(rows, self.chunk(batch) or rows) * length

    def _shapes(self, batch: GroupBatch) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows, positions of one that a device has) of responses and of prompts of a shard; microbatches may lie in front."""
        found = [(x.shape[-2], -(-x.shape[-1] // self.sequence)) for x in (batch.tokens, batch.prompt_tokens)]
        return found[0], found[1]

    def _each(self) -> int:
        return position_bytes(self.config, self.dtype, self.remat, self.tensor, self.sequence, self.expert)

    def _vocabulary(self) -> int:
        whole = self.config.vocab_size % self.tensor  # as `parallel.axes` leaves what does not divide
        return self.config.vocab_size if whole else self.config.vocab_size // self.tensor

    def __call__(self, params: dict, batch: GroupBatch) -> jax.Array:
        """What the model's head says of the responses, `[G, K]`: log-probs (of policy and reference both), or scores.

        Weights of few bits are taken for what they are, whatever the config says: a reference may have fewer than the policy.
        """
        return self.scored(params, batch, counted=False).values

    def scored(self, params: dict, batch: GroupBatch, *, counted: bool = True, collisions: bool = False) -> ResponseSums:
        """The same, and what else the pass can say, as `align_jax.scoring.logps.ResponseSums` has it.

        Args:
          counted: whether a mixture's load is counted.
          collisions: whether `log_collisions` are asked for; a reward model has none.
        """
        kind = kind_of(params)
        config = self.config if kind == self.config.quantize else dataclasses.replace(self.config, quantize=kind)
        model = Decoder(config, params, dtype=self.dtype, remat=self.remat, attention=self.attention)
        how = {"rows_per_chunk": self.chunk(batch), "counted": counted}
        if self.config.head == "score":
            return ResponseSums(*scores_and_load(model, batch, **how))
        return scored_logps(model, batch, head_chunk=self.head(batch), collisions=collisions, **how)

    def for_objective(
        self, params: dict, batch: GroupBatch, needs_collisions: bool, counted: bool = True
    ) -> tuple[ResponseSums, GroupLabels]:
        """What is scored, and the labels of an objective: with `log_collisions` `[G, K]` among them where it needs them."""
        found = self.scored(params, batch, counted=counted, collisions=needs_collisions)
        labels = batch.group_labels
        return found, labels.with_labels(log_collisions=found.log_collisions) if needs_collisions else labels


@dataclasses.dataclass(frozen=True, eq=False)
class FixedScorer:
    """What a model with these weights says of groups: log-probs, or a reward model's scores.

    Attributes:
      scorer: how. weights: on the mesh. mesh: the devices.
    """

    scorer: Scorer
    weights: dict
    mesh: Mesh

    def batch(self, batch: GroupBatch) -> jax.Array:
        """`[G, K]` of a host batch that holds this process's shards, in the program that training scores with."""
        return _compiled(self.scorer, batch_sharding(self.mesh))(self.weights, self._tokens(batch))

    def for_objective(self, batch: GroupBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`[G, K]` as `batch` gives, and the labels of an objective that needs collisions."""
        found = _compiled_with_collisions(self.scorer, batch_sharding(self.mesh))(self.weights, self._tokens(batch))
        return found.values, {"log_collisions": found.log_collisions}

    def _tokens(self, batch: GroupBatch) -> GroupBatch:
        # Labels are not scored, and another label (a reference joined later) would be another program.
        return put_batch(dataclasses.replace(batch, labels={}, per_response=()), self.mesh)

    def groups(self, groups: Sequence[TokenGroup], rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """(place in `groups`, values `[K]`) of groups that every process holds whole, similar lengths together.

        Args:
          rows: responses computed at one time, over all devices.
        """
        shards = data_shards(self.mesh)
        given = self.scorer.rows_per_chunk
        chunk = given if isinstance(given, int) else max(1, rows // shards)
        compiled = _compiled(dataclasses.replace(self.scorer, rows_per_chunk=chunk), replicated(self.mesh))
        for batch in length_batches(groups, shards=shards, rows=rows):
            with jax.set_mesh(self.mesh):
                values = np.asarray(compiled(self.weights, put_whole_batch(batch, self.mesh)))
            for place, found in zip(batch.rows.tolist(), values, strict=True):
                if place >= 0:
                    yield place, found[: groups[place].slots]


@functools.lru_cache(maxsize=32)
def _compiled(scorer: Scorer, where: NamedSharding) -> Callable[[dict, GroupBatch], jax.Array]:
    # With the training step's options: products that are added up in another order round differently.
    return jax.jit(scorer, out_shardings=where, compiler_options=compiler_options(where.mesh))


@functools.lru_cache(maxsize=8)
def _compiled_with_collisions(scorer: Scorer, where: NamedSharding) -> Callable[[dict, GroupBatch], ResponseSums]:
    scored = functools.partial(scorer.scored, counted=False, collisions=True)
    return jax.jit(scored, out_shardings=where, compiler_options=compiler_options(where.mesh))
