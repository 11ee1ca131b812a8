"""What attention costs with rows filled in three ways: packed by our kernels, packed by XLA, one answer a row by splash.

    python tools/compare_attention.py align_jax/cost/lengths/ultrafeedback.jsonl [--topology v5p:2x2x1]

One layer, forward and backward, of one shard's groups with these lengths (a line `{"prompt": 120, "responses": [300, 41]}`).
Heads are those of a chip: by default LLaMA-3-8B's over `tensor: 4`. With a topology the layer's attention is compiled for it,
which needs no TPU, for what it holds in memory besides its arguments and results.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from align_jax.batch import GroupBatch, computed_positions, real_positions
from align_jax.cost.topology import topology_devices
from align_jax.data import RowLayout, Segment, TokenGroup, pack_groups
from align_jax.models.attention import Tokens, attend, splash, visibility
from align_jax.models.attention.pairs import computed_pairs
from align_jax.parallel.mesh import make_mesh

# Backend -> whether rows are packed, and its products of `2 E` operations for a pair of tokens: forward and backward.
WAYS = {"pallas": (True, 2 + 7), "xla": (True, 2 + 5), "splash": (False, 2 + 7)}
DENSE = 26000  # keys that cost as much as the rest of a position of the 8B model, so that rows are those of training
WEIGHTS = 218e6  # of a layer of it


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lengths", type=Path)
    parser.add_argument("--topology")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--tensor", type=int, default=4)
    parser.add_argument("--longest", type=int, nargs=2, default=(1024, 1024), metavar=("PROMPT", "ANSWER"))
    given = parser.parse_args()
    groups, heads = read(given.lengths, given.groups, given.longest), (32 // given.tensor, 8 // given.tensor, 128)
    least = sum(_triangle(len(g.prompt) - 1) for g in groups)
    least += sum((len(g.prompt) - 1) * len(s.tokens) + _triangle(len(s.tokens)) for g in groups for s in g.segments)
    print(f"{len(groups)} groups; GFLOP of a layer of a chip: attention, and all other products")
    print("          positions  real  pairs  attention   other" + ("  MiB held" if given.topology else ""))
    for backend, (pack, products) in WAYS.items():
        batch = rows_of(groups, pack)
        pairs, positions = pairs_of(backend, batch), computed_positions(batch)
        line = (
            f"{backend:9} {positions:9}  {real_positions(batch) / positions:.2f}  {pairs / least:4.1f}x  "
            f"{pairs * products * 2 * heads[0] * heads[2] / 1e9:9.0f}  {positions * 6 * WEIGHTS / given.tensor / 1e9:6.0f}"
        )
        print(line + (f"  {held(backend, batch, heads, given.topology) / 2**20:8.0f}" if given.topology else ""), flush=True)


def read(path: Path, count: int, longest: tuple[int, int]) -> list[TokenGroup]:
    """The first groups of a file of lengths, cut."""
    made = []
    for line in path.read_text(encoding="utf-8").splitlines()[:count]:
        row = json.loads(line)
        segments = [Segment(np.zeros(min(n, longest[1]), np.int32), k) for k, n in enumerate(row["responses"])]
        prompt = np.zeros(min(row["prompt"], longest[0]), np.int32)
        made.append(TokenGroup(len(made), prompt, tuple(segments), len(segments), {}))
    return made


def rows_of(groups: list[TokenGroup], pack: bool) -> GroupBatch:
    """The batch of one shard."""
    layout = RowLayout(pack=pack, align="right", dense=DENSE)
    return pack_groups(groups, shards=1, groups_per_shard=len(groups), layout=layout)


def pairs_of(backend: str, batch: GroupBatch) -> float:
    """Pairs of a head that a backend computes."""
    if backend == "pallas":
        return sum(computed_pairs(batch))
    (_, m, p), (_, n, r) = batch.prompt_tokens.shape, batch.tokens.shape
    if backend == "xla":  # four parts of a row's queries, each with the row's keys up to its own end, and with the prompt row
        return 5 / 8 * m * p * p + n * r * (p + 5 / 8 * r)
    together = n // m if batch.uniform else 1
    return m * splash.computed_pairs(1, p, 0) + n // together * splash.computed_pairs(together, r, p)


def held(backend: str, batch: GroupBatch, heads: tuple[int, int, int], topology: str) -> int:
    """Bytes that the compiled attention of a layer holds."""
    where = NamedSharding(make_mesh(1, 1, 1, devices=topology_devices(topology)[:1]), PartitionSpec())
    batch, size = dataclasses.replace(batch, labels={}), heads[2]

    def array(shape, n):
        return jax.ShapeDtypeStruct((*shape, n, size), jnp.bfloat16, sharding=where)

    def loss(arrays, batch):
        (pq, pk, pv), (q, k, v) = arrays
        prompt = Tokens(batch.prompt_positions, batch.prompt_segments)
        rows = Tokens(batch.positions, batch.segments, batch.parents if batch.packed else None, batch.groups)
        first = attend(pq, pk, pv, visibility(backend, prompt, None))
        out = attend(q, k, v, visibility(backend, rows, None, prompt, batch.prompt_row, batch.uniform), pk, pv)
        return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in (first, out))

    arrays = [[array(x.shape, n) for n in (*heads[:2], heads[1])] for x in (batch.prompt_tokens, batch.tokens)]
    ids = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), batch)
    compiled = jax.jit(jax.grad(loss)).trace(arrays, ids).lower(lowering_platforms=("tpu",)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


if __name__ == "__main__":
    main()
