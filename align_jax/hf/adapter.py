"""Adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors, read and written.

Names are in `adapter_names`. A is `[r, inputs]`, B `[outputs, r]` there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from align_jax.errors import UserError
from align_jax.hf.adapter_checks import by_pattern, check_kind, check_ranks, check_whole, ranks_found
from align_jax.hf.adapter_names import (
    FoundTensor,
    check_saved,
    found_tensors,
    last_part,
    module_name,
    name_alone,
    written_tensors,
)
from align_jax.hf.dtypes import resolve_dtype
from align_jax.hf.fields import number
from align_jax.hf.files import ADAPTER, ADAPTER_WEIGHTS, Checkpoint, read_json, split_revision
from align_jax.hf.folder import check_target, check_tokenizer, save_tokenizer, written_whole
from align_jax.hf.fused import Apart, module_of, shape_together, together
from align_jax.hf.writer import write_json, write_safetensors
from align_jax.models import Decoder, ModelConfig, weight_shapes
from align_jax.models.adapter import MAGNITUDE, TARGETS, A, Adapter
from align_jax.models.adapting import adapter_rows, trained_paths
from align_jax.models.weights import rows
from align_jax.parallel.processes import on_first


def read_adapter(folder: str | os.PathLike, config: ModelConfig) -> Adapter:
    """The shape of the adapter in a folder, for a model without one; no weight is read.

    Args:
      config: of the model that the adapter is for.

    Raises:
      UserError: no adapter of PEFT there, one of a kind that is not computed here, or one for another model; names the key or
        the tensor.
    """
    folder = _folder(folder)
    file = folder / ADAPTER
    values, checkpoint = read_json(file), _checkpoint(folder, config)
    check_kind(file, values)
    found = list(found_tensors(checkpoint, _apart(config)))
    shape = ranks_found(checkpoint, config, found)
    alphas = {
        target: tuple(by_pattern(file, values, "alpha", module_name(config, target, layer)) for layer in range(config.layers))
        for target in shape
    }
    check_ranks(file, values, config, shape)
    rank = max(max(ranks) for ranks in shape.values())
    alpha = number(values, "lora_alpha", str(file), 8.0)
    saved = tuple(dict.fromkeys(tensor.weight.name for tensor in found if tensor.weight.stored is not None))
    check_whole(checkpoint, config, found, bool(values.get("use_dora")))
    check_saved(config, saved, f"{folder}")
    return Adapter(
        targets=tuple(target for target in TARGETS if target in shape),
        rank=rank,
        alpha=alpha,
        rslora=bool(values.get("use_rslora")),
        dora=bool(values.get("use_dora")),
        saved=saved,
        layer_ranks=tuple((t, shape[t]) for t in TARGETS if t in shape and set(shape[t]) != {rank}),
        layer_alphas=tuple((t, alphas[t]) for t in TARGETS if t in shape and set(alphas[t]) != {alpha}),
    )


def load_adapter(folder: str | os.PathLike, config: ModelConfig, shardings: Mapping | None = None) -> dict:
    """The weights of an adapter, and of what was saved whole beside it, in float32.

    Args:
      config: of the model with the adapter, whose `lora` is what `read_adapter` says (`dropout` aside).
      shardings: nested dict as `weight_shardings(config, mesh)`; None: the default device.

    Returns:
      Nested dict of arrays, as those of `Decoder`, of the trained weights alone; a whole weight that is not there (the score
      of a reward model, which a language model's adapter lacks) is left out.

    Raises:
      UserError: a tensor of another shape, or one that is absent, by name.
    """
    folder = _folder(folder)
    checkpoint = _checkpoint(folder, config)
    shapes, places = flatten_dict(weight_shapes(config)), flatten_dict(shardings or {})
    tensors = list(found_tensors(checkpoint, _apart(config.base)))
    whole = {tensor.weight.path for tensor in tensors if tensor.weight.stored is not None}
    factors = {weight.path for weight in adapter_rows(config)}
    arrays = {path: np.zeros(shapes[path], np.float32) for path in trained_paths(config) & (whole | factors)}
    for path in arrays:
        if path[-1].endswith(MAGNITUDE):
            arrays[path] += 1
    for tensor in tensors:
        shape = tensor.weight.shape_of_one(config)
        value = _ours(checkpoint, tensor, shape)
        array = arrays[tensor.weight.path]
        target = array if tensor.layer is None else array[tensor.layer]
        target[tuple(slice(0, n) for n in value.shape)] = value
    put = {path: jax.device_put(value, places[path]) if places else jax.numpy.asarray(value) for path, value in arrays.items()}
    return unflatten_dict(put)


def save_adapter(
    model: Decoder, out_dir: str | os.PathLike, base: str | os.PathLike | None, tokenizer: Any = None, *, dtype=None
) -> None:
    """Writes an adapter in PEFT's format: `peft.PeftModel.from_pretrained(base, out_dir)` is the model that was trained.

    Args:
      model: with an adapter; the weights of that and what is saved whole beside are written.
      out_dir: a folder that does not exist, is empty, or is an earlier export (which is replaced).
      base: what the model without it is called, a folder or hub id, for PEFT. tokenizer: as in `save_model`.
      dtype: of the written weights, a type or its name; None: float32.

    Raises:
      UserError: a model without an adapter, DoRA of a part of what a checkpoint holds as one tensor (Phi), `out_dir` holds
        other files, or the disk is too full.
    """
    config, weights = model.config, model.weights()
    if config.lora is None:
        raise UserError("the model has no adapter (align_jax.add_adapter); align_jax.save_model writes it whole")
    out = Path(os.path.expanduser(os.fspath(out_dir))).resolve()
    check_tokenizer(tokenizer)
    flat, dtype = flatten_dict(weights), resolve_dtype("float32" if dtype is None else dtype, "dtype")
    found = {t.name: np.asarray(_whole(_theirs(t, flat[t.weight.path], config))) for t in written_tensors(_apart(config))}
    arrays = {name: array.astype(dtype) for name, array in (together(found, config) if config.fused else found).items()}
    on_first(lambda: check_target(out, sum(array.nbytes for array in arrays.values())), "export")
    with written_whole(out) if jax.process_index() == 0 else contextlib.nullcontext() as folder:
        if folder is not None:
            shapes = [(name, array.shape) for name, array in arrays.items()]
            write_safetensors(folder / ADAPTER_WEIGHTS, shapes, dtype, list(arrays.values()))
            write_json(folder / ADAPTER, adapter_config(config, None if base is None else os.fspath(base)))
            save_tokenizer(tokenizer, folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"align_jax.save_adapter {out}")


def _whole(array: jax.Array) -> jax.Array:
    """All of an array on every process; all must call."""
    sharding = getattr(array, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return array
    return jax.jit(lambda x: x, out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))(array)


def adapter_config(config: ModelConfig, base: str | None) -> dict[str, Any]:
    """The dict of `adapter_config.json` that PEFT reads."""
    adapter, (name, revision) = config.lora, (None, None) if base is None else split_revision(base)
    modules = _modules(config)
    full = [module for module, (rank, _) in modules.items() if rank]
    ranks = {module: rank for module, (rank, _) in modules.items() if rank not in (0, adapter.rank)}
    alphas = {module: _number(alpha) for module, (rank, alpha) in modules.items() if rank and alpha != adapter.alpha}
    own = {weight.name: weight for weight in rows(config)}
    saved = dict.fromkeys(name_alone(own[name], config) for name in adapter.saved)
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if config.head == "score" else "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "r": adapter.rank,
        "lora_alpha": _number(adapter.alpha),
        "lora_dropout": adapter.dropout,
        "target_modules": list(dict.fromkeys(last_part(name) for name in full)) if len(full) == len(modules) else full,
        "modules_to_save": list(saved) or None,
        "use_rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": "gaussian" if adapter.init == "gaussian" else True,
        "inference_mode": True,
    }


def _modules(config: ModelConfig) -> dict[str, tuple[int, float]]:
    """Each module that a target names, with its rank and alpha; rank 0: it has no adapter."""
    adapter, found = config.lora, {}
    for target in adapter.targets:
        fused = module_of(target) if config.fused else None
        ranks, alphas = adapter.ranks(target, config.layers), adapter.alphas(target, config.layers)
        for layer in range(config.layers):
            own = ranks[layer], alphas[layer]
            found[module_name(config, target, layer)] = own if fused is None else shape_together(config, fused, layer)
    return found


def adapter_files(folder: str | os.PathLike) -> list[Path]:
    """The files that say what an adapter is: its config and its weights.

    Raises:
      UserError: there is none.
    """
    return [_folder(folder) / name for name in (ADAPTER, ADAPTER_WEIGHTS)]


def _folder(given: str | os.PathLike) -> Path:
    folder = Path(os.path.expandvars(os.path.expanduser(os.fspath(given))))
    if not (folder / ADAPTER).is_file():
        raise UserError(f"{given}: no adapter there: a folder with {ADAPTER} and {ADAPTER_WEIGHTS} is one")
    return folder


def _checkpoint(folder: Path, config: ModelConfig) -> Checkpoint | Apart:
    checkpoint = Checkpoint(folder, ADAPTER_WEIGHTS)
    return Apart(checkpoint, config) if config.fused else checkpoint


def _apart(config: ModelConfig) -> ModelConfig:
    """The model with a tensor of its own for each projection."""
    return dataclasses.replace(config, fused=False)


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)


def _theirs(tensor: FoundTensor, array: jax.Array, config: ModelConfig) -> jax.Array:
    one = array if tensor.layer is None else array[tensor.layer]
    if tensor.weight.stored is not None:
        return tensor.weight.stored.layout.to_theirs(one)
    target, _, kind = tensor.weight.path[1].partition("_")
    rank = config.lora.ranks(target, config.layers)[tensor.layer]
    if kind == MAGNITUDE:
        return one.reshape(-1)
    return one.reshape(-1, one.shape[-1]).T[:rank] if kind == A else one.reshape(one.shape[0], -1).T[:, :rank]


def _ours(checkpoint: Checkpoint, tensor: FoundTensor, shape: tuple[int, ...]) -> np.ndarray:
    """A stored tensor as it stands here; factors as wide as their own rank."""
    stored = checkpoint.shapes[tensor.name]
    checkpoint.dtype(tensor.name)
    value = checkpoint.read(tensor.name, tuple(slice(0, n) for n in stored)).astype(np.float32)
    if not np.isfinite(value).all():
        raise UserError(f"tensor {tensor.name!r} in {checkpoint.file(tensor.name)} has values that are not finite; mend it")
    kind = tensor.weight.path[-1].partition("_")[2]
    if tensor.weight.stored is not None:
        wanted = tensor.weight.stored.layout.their_shape(shape)
        make = lambda: np.asarray(tensor.weight.stored.layout.to_ours(value, shape))  # noqa: E731
    elif kind == MAGNITUDE:
        wanted, make = (int(np.prod(shape)),), lambda: value.reshape(shape)
    elif kind == A:
        wanted, make = (stored[0], int(np.prod(shape[:-1]))), lambda: value.T.reshape(*shape[:-1], stored[0])
    else:
        wanted, make = (int(np.prod(shape[1:])), stored[1]), lambda: value.T.reshape(stored[1], *shape[1:])
    if stored != tuple(wanted):
        raise UserError(
            f"tensor {tensor.name!r} in {checkpoint.file(tensor.name)} has shape {list(stored)}, the model asks for "
            f"{list(wanted)}: is the adapter for another model?"
        )
    return make()
