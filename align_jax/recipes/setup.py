"""The parts of a run, put together from its config: what train, evaluate and the benchmarks share."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from align_jax import hf
from align_jax.batch import GroupBatch
from align_jax.config import Config
from align_jax.cost.flops import keys_per_position
from align_jax.data import BatchLoader, Encoder, GroupDataset, RowLayout
from align_jax.errors import UserError
from align_jax.files import fingerprint_files
from align_jax.models import ModelConfig, init_weights, weight_shardings
from align_jax.models.attention import resolve_backend
from align_jax.objectives import Objective
from align_jax.parallel.mesh import batch_sharding, data_shards, make_mesh, put_batch
from align_jax.parallel.processes import LargestAhead, largest_anywhere
from align_jax.scoring.reference import cache_file, cache_key, cached, compute_reference
from align_jax.scoring.scorer import Scorer

# Attention without a kernel: small products and a softmax in memory take this much longer for an operation than the rest does
# (measured on a CPU, heads of 64).
XLA_ATTENTION_COST = 4


@dataclasses.dataclass(frozen=True)
class Start:
    """The starting model of a run.

    Attributes:
      config: its shape, with the head that the objective needs. folder: its Hugging Face folder, or None for a fresh model.
      hf_config: its `config.json`, or None.
      stored: its shape in that folder, where a reward model may start from a language model; None for a fresh one.
    """

    config: ModelConfig
    folder: Path | None
    hf_config: dict | None
    stored: ModelConfig | None = None


def mesh_of(config: Config) -> Mesh:
    """The mesh that the config asks for, on the devices that there are."""
    return make_mesh(*config.mesh_sizes(jax.device_count()))


def start_of(config: Config) -> Start:
    """Reads the shape of the starting model; no weight is loaded."""
    if config.model.path is None:
        return Start(with_head(config.model.fresh_config(), config), None, None)
    folder = hf.resolve_folder(config.model.path)
    stored, hf_config = hf.load_config(folder, None if config.head == "score" else config.head)
    return Start(with_head(stored, config), Path(folder), hf_config, stored)


def with_head(shape: ModelConfig, config: Config) -> ModelConfig:
    """The shape with the head that the objective of the config trains."""
    return dataclasses.replace(shape, head=config.head)


def weights_of(start: Start, config: Config, mesh: Mesh) -> dict:
    """The starting weights, sharded on the mesh: imported, or fresh from `run.seed`; a head may be fresh alone."""
    shardings = weight_shardings(start.config, mesh)
    make, key = partial(init_weights, start.config, param_dtype=config.model.param_dtype), jax.random.key(config.run.seed)
    if start.folder is None:
        return jax.jit(make, out_shardings=shardings)(key)
    fresh = () if start.stored == start.config else ("lm_head", "score")
    where = weight_shardings(start.stored, mesh)
    weights = hf.load_weights(start.folder, start.stored, where, config.model.param_dtype, skip=fresh)
    if fresh:  # the compiler leaves out all but the head
        weights["score"] = jax.jit(lambda k: make(k)["score"], out_shardings=shardings["score"])(key)
    return weights


def tokenizer_of(config: Config):
    """The tokenizer of `model.tokenizer`, by default of `model.path`."""
    where = config.model.tokenizer or config.model.path
    if where is None:
        raise UserError("model.tokenizer: a fresh model (model.config) needs a tokenizer; give its folder or hub id")
    return tokenizer_at(where, "model.tokenizer")


def tokenizer_at(where: str | os.PathLike, key: str):
    """The tokenizer of a folder or hub id; `key` is what the config calls it, for errors."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(os.path.expanduser(where))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: no tokenizer can be loaded from {where}: {str(error).splitlines()[0]}") from error


def backend_of(config: Config, mesh: Mesh) -> str:
    """The attention backend of this run; UserError where the one that was asked for cannot run on these devices."""
    return resolve_backend(config.model.attention, config.model.dtype, mesh.devices.flat[0].platform)


def scorer_of(start: Start, config: Config) -> Scorer:
    """How responses are scored in this run."""
    chunk = {} if config.model.head_chunk is None else {"head_chunk": config.model.head_chunk}
    return Scorer(
        start.config,
        dtype=config.model.dtype,
        attention=config.model.attention,
        remat=config.model.remat,
        rows_per_chunk=config.model.rows_per_chunk,
        **chunk,
    )


def dataset_of(config: Config, which: str, encoder: Encoder, objective: Objective, spool_dir: Path) -> GroupDataset:
    """The `train` or `eval` data, arranged for the objective."""
    return GroupDataset(
        config.data,
        which,
        encoder,
        layout=objective.layout,
        preference=getattr(objective, "preference", "dpo"),
        seed=config.run.seed,
        spool_dir=spool_dir,
        ends=objective.head == "score",
    )


def loader_of(config: Config, dataset: GroupDataset, mesh: Mesh, **more) -> BatchLoader:
    """Batches of a dataset for this mesh and this process."""
    if data_shards(mesh) % jax.process_count():
        raise UserError(
            f"mesh: data x fsdp = {data_shards(mesh)} must be a multiple of the {jax.process_count()} processes, so that each "
            "reads its own part of the data"
        )
    backend = backend_of(config, mesh)
    dense = keys_per_position(start_of(config).config)
    if backend == "xla":
        dense = max(1, dense // XLA_ATTENTION_COST)
    return BatchLoader(
        dataset,
        shards=data_shards(mesh) // jax.process_count(),
        groups_per_step=config.train.groups_per_step,
        accumulation_steps=config.train.accumulation_steps,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
        layout=RowLayout(pack=config.data.pack and backend == "xla", dense=dense),
        workers=config.data.workers,
        prefetch=config.data.prefetch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        agree=largest_anywhere if jax.process_count() > 1 else None,
        agree_ahead=LargestAhead if jax.process_count() > 1 else None,
        **more,
    )


def score_batches(scorer: Scorer, mesh: Mesh, params: dict) -> Callable[[GroupBatch], jax.Array]:
    """host batch -> response log-probs `[G, K]` under fixed weights."""
    compiled = jax.jit(scorer, out_shardings=batch_sharding(mesh))
    return lambda batch: compiled(params, put_batch(batch, mesh))


def reference_of(
    config: Config,
    start: Start,
    dataset: GroupDataset,
    needed: np.ndarray,
    batches: Iterable[GroupBatch],
    scorer: Scorer,
    mesh: Mesh,
    params: Callable[[], dict],
) -> tuple[np.ndarray, Path, bool]:
    """Reference log-probs of a dataset, from the cache or computed now.

    Args:
      needed: int row numbers. batches: host batches that together hold them.
      params: loads the reference's weights; called only when they are needed.

    Returns:
      float32 `[rows, K]` (NaN where not needed and not known), the cache file, and whether all came from it.
    """
    folder = hf.resolve_folder(config.reference.path) if config.reference.path else start.folder
    # A fresh model is known by its seed and shape.
    model = fingerprint_files(Path(folder).glob("*.safetensors")) if folder else repr((start.config, config.run.seed))
    key = cache_key(
        version=2,
        model=model,
        shape=dataclasses.asdict(start.config),
        data=dataset.fingerprint,
        dtype=scorer.dtype,
        param_dtype=config.model.param_dtype,
    )
    path = cache_file(key, dataset.path, config.reference.cache_dir)

    def compute(table: np.ndarray) -> np.ndarray:
        return compute_reference(score_batches(scorer, mesh, params()), batches, table)

    values, hit = cached(path, (len(dataset), dataset.slots), needed, compute)
    return values, path, hit


def microbatches(batches):
    """Batches without their leading axis of microbatches."""
    for batch in batches:
        for i in range(batch.tokens.shape[0]):
            yield jax.tree.map(lambda x, i=i: x[i], batch)
