"""Export: a folder in Hugging Face format that transformers loads, written tensor by tensor."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from align_jax.errors import UserError
from align_jax.hf import names
from align_jax.hf.config import hf_config_from_model
from align_jax.hf.dtypes import resolve_dtype
from align_jax.hf.files import INDEX, SINGLE
from align_jax.hf.folder import check_target, check_tokenizer, padding_tokenizer, save_tokenizer, written_whole
from align_jax.hf.writer import METADATA, write_json, write_safetensors
from align_jax.models import Decoder
from align_jax.models.adapting import merged
from align_jax.models.layouts import Layout
from align_jax.parallel.processes import on_first

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def save_model(
    model: Decoder,
    out_dir: str | os.PathLike,
    tokenizer: Any = None,
    *,
    dtype=None,
    base_config: dict[str, Any] | None = None,
    generation_config: dict[str, Any] | None = None,
    max_shard_bytes: float = 5e9,
) -> None:
    """Writes a model in Hugging Face format: safetensors, `config.json`, `generation_config.json`, tokenizer.

    An adapter is merged into the weights, in float32, rounded once; `save_adapter` writes it alone.

    The folder appears whole or not at all: it is written beside `out_dir` and renamed. Tensors are fetched one at a
    time, so host memory holds one tensor. With several processes all must call; process 0 writes.

    Args:
      model: the model; its arrays may be sharded over many devices.
      out_dir: a folder that does not exist, is empty, or is an earlier export (which is replaced).
      tokenizer: a transformers tokenizer, or a folder whose tokenizer files and chat template are copied.
      dtype: type of the written weights, a type or its name; None: that of the model's embedding.
      base_config: dict of the `config.json` that the model came from, whose other fields (token ids, ...) are kept.
        Token ids that it lacks are taken from the tokenizer, where that is not a folder.
      generation_config: dict for `generation_config.json`; None: the token ids of the config. A reward model has none.
      max_shard_bytes: most bytes of weights in a file (a larger tensor gets its own); where all fits, there is one file
        and no index.

    Raises:
      UserError: `out_dir` holds other files, the disk is too full, a tokenizer folder without tokenizer files, a
        base_config of another architecture, a value that float16 cannot hold, weights of few bits.
    """
    if model.config.quantize is not None:
        raise UserError(
            f"the model's weights are {model.config.quantize}, which is less than they were: save its adapter "
            "(align_jax.save_adapter), or load the model without quantize"
        )
    if model.config.lora is not None:
        model = Decoder(*merged(model.config, model.weights()), dtype=model.dtype)
    out = Path(os.path.expanduser(os.fspath(out_dir))).resolve()
    target = resolve_dtype(model.embed[...].dtype if dtype is None else dtype, "dtype")
    if max_shard_bytes <= 0:
        raise UserError(f"max_shard_bytes is {max_shard_bytes}; expected a positive number")
    check_tokenizer(tokenizer)
    config = hf_config_from_model(model.config, base_config, target)
    if model.config.head == "score":
        tokenizer = padding_tokenizer(tokenizer)
    config = _with_token_ids(config, tokenizer)
    if model.config.head == "score":
        config["pad_token_id"] = _padding(config, tokenizer)
    if generation_config is None:
        generation_config = {key: config[key] for key in _TOKEN_IDS if config[key] is not None}
    shards = _split(names.wholes(model.config), target, max_shard_bytes)
    total = sum(_bytes(tensor, target) for shard in shards for tensor in shard)
    on_first(lambda: check_target(out, total), "export")

    with written_whole(out) if jax.process_index() == 0 else contextlib.nullcontext() as folder:
        _write_weights(model, folder, shards, target, total)
        if folder is not None:
            write_json(folder / "config.json", config)
            if model.config.head == "lm_head":
                write_json(folder / "generation_config.json", generation_config)
            save_tokenizer(tokenizer, folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"align_jax.save_model {out}")


def _padding(config: dict[str, Any], tokenizer: Any) -> int | None:
    """The tokenizer's padding; None where it is an end of texts: transformers scores at the last token that is no padding."""
    padding = config["pad_token_id"] if tokenizer is None else tokenizer.pad_token_id
    eos = config["eos_token_id"]
    return None if padding in (eos if isinstance(eos, list) else [eos]) else padding


def _with_token_ids(config: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    absent = [key for key in _TOKEN_IDS if config[key] is None]
    return {**config, **{key: getattr(tokenizer, key, None) for key in absent}}


def _bytes(tensor: names.Whole, dtype: np.dtype) -> int:
    return math.prod(tensor.shape) * dtype.itemsize


def _split(tensors: list[names.Whole], dtype: np.dtype, most: float) -> list[list[names.Whole]]:
    """Consecutive runs of tensors of at most `most` bytes; a larger tensor is a run of its own."""
    shards, size = [[]], 0
    for tensor in tensors:
        if shards[-1] and size + _bytes(tensor, dtype) > most:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += _bytes(tensor, dtype)
    return shards


def _write_weights(model: Decoder, folder: Path | None, shards: list[list[names.Whole]], dtype: np.dtype, total: int) -> None:
    """Writes all shards and their index; with folder None only takes part in fetching."""
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = SINGLE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        arrays = (_fetch(model, tensor, dtype, folder is not None) for tensor in shard)
        if folder is None:
            for _ in arrays:
                pass
            continue
        write_safetensors(folder / file, [(t.name, t.shape) for t in shard], dtype, arrays)
        weight_map.update({tensor.name: file for tensor in shard})
    if folder is not None and len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total, **METADATA}, "weight_map": weight_map})


def _fetch(model: Decoder, tensor: names.Whole, dtype: np.dtype, wanted: bool) -> np.ndarray | None:
    """One tensor as it is stored, on this host where wanted; every process must call, in the same order."""
    pieces = [_fetch_part(model, part, dtype, wanted) for part in tensor.parts]
    if not wanted:
        return None
    array = tensor.joined(pieces)
    if dtype == np.float16 and not np.isfinite(array).all():
        raise UserError(f"tensor {tensor.name!r} has values that float16 cannot hold; export as bfloat16 or float32")
    return array


def _fetch_part(model: Decoder, tensor: names.Tensor, dtype: np.dtype, wanted: bool) -> np.ndarray | None:
    ours = functools.reduce(getattr, tensor.weight.path, model)[...]
    sharding = getattr(ours, "sharding", None)  # none: a NumPy array
    replicated = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
    take = _take(tensor.weight.stored.layout, len(tensor.place), dtype, replicated)
    piece = take(ours, np.array(tensor.place, np.int32))
    return np.asarray(piece) if wanted else None


@functools.lru_cache(maxsize=256)
def _take(layout: Layout, leading: int, dtype: np.dtype, sharding: Sharding | None):
    """The program that takes one layer, or one expert of it, out of an array and turns it into the stored tensor."""

    def take(ours: jax.Array, place: jax.Array) -> jax.Array:
        start = (*(place[n] for n in range(leading)), *(0,) * (ours.ndim - leading))
        ours = jax.lax.dynamic_slice(ours, start, (1,) * leading + ours.shape[leading:]).reshape(ours.shape[leading:])
        return layout.to_theirs(ours).astype(dtype)

    return jax.jit(take, out_shardings=sharding)
