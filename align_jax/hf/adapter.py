"""Adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors, read and written.

PEFT calls a tensor as the module that it belongs to, `base_model.model.` in front and `.lora_A.weight`, `.lora_B.weight` or
`.lora_magnitude_vector` behind; a module that is trained whole has its own tensor's name behind `base_model.model.`. A is
`[r, inputs]`, B `[outputs, r]` there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from align_jax.errors import UserError
from align_jax.hf import names
from align_jax.hf.dtypes import resolve_dtype
from align_jax.hf.fields import number
from align_jax.hf.files import ADAPTER, ADAPTER_WEIGHTS, Checkpoint, read_json, split_revision
from align_jax.hf.folder import check_target, check_tokenizer, save_tokenizer, written_whole
from align_jax.hf.fused import Apart, module_of, shape_together, together
from align_jax.hf.writer import write_json, write_safetensors
from align_jax.models import Decoder, ModelConfig, weight_shapes
from align_jax.models.adapter import MAGNITUDE, MLP_TARGETS, TARGETS, A, Adapter, B
from align_jax.models.adapting import adapter_rows, trained_paths
from align_jax.models.weights import Weight, rows
from align_jax.parallel.processes import on_first

_PREFIX = "base_model.model."
_KINDS = {".lora_A.weight": A, ".lora_B.weight": B, ".lora_magnitude_vector": MAGNITUDE}
# Starts of A and B that change the model's own weights, too: with them, "adapter off" is another model.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Whatever is set of these computes something else.
_OTHERS = (
    *("layer_replication", "alora_invocation_tokens", "trainable_token_indices", "target_parameters", "lora_bias"),
    *("use_qalora", "use_bdlora", "fan_in_fan_out", "arrow_config", "kasa_config", "velora_config", "monteclora_config"),
)


@dataclasses.dataclass(frozen=True)
class _Found:
    """A tensor of the file: the row of our table it belongs to, and its layer (None: the weight has no layers)."""

    name: str
    weight: Weight
    layer: int | None


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
    _check_kind(file, values)
    found = list(_tensors(checkpoint, _apart(config)))
    shape = _ranks(checkpoint, config, found)
    alphas = {
        target: tuple(_pattern(file, values, "alpha", _module(config, target, layer)) for layer in range(config.layers))
        for target in shape
    }
    _check_ranks(file, values, config, shape)
    rank = max(max(ranks) for ranks in shape.values())
    alpha = number(values, "lora_alpha", str(file), 8.0)
    saved = tuple(dict.fromkeys(tensor.weight.name for tensor in found if tensor.weight.stored is not None))
    _check_whole(checkpoint, config, found, bool(values.get("use_dora")))
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
    tensors = list(_tensors(checkpoint, _apart(config.base)))
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
    found = {t.name: np.asarray(_whole(_theirs(t, flat[t.weight.path], config))) for t in _written(_apart(config))}
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
    saved = dict.fromkeys(_alone(own[name], config) for name in adapter.saved)
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if config.head == "score" else "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "r": adapter.rank,
        "lora_alpha": _number(adapter.alpha),
        "lora_dropout": adapter.dropout,
        "target_modules": list(dict.fromkeys(_last(name) for name in full)) if len(full) == len(modules) else full,
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
            found[_module(config, target, layer)] = own if fused is None else shape_together(config, fused, layer)
    return found


def saved_weights(config: ModelConfig, modules: list[str], key: str = "lora.modules_to_save") -> tuple[str, ...]:
    """The names of our weights that PEFT's `modules_to_save` means; the score of a reward model is always among them.

    Raises:
      UserError: a module that the model has not.
    """
    known: dict[str, list[str]] = {}
    for weight in rows(config.base):
        known.setdefault(_short(weight), []).append(weight.name)
    found = {}
    for module in [*modules, *(["score"] if config.head == "score" else [])]:
        if module not in known:
            raise UserError(f"{key}: the model has no module {module!r}; it has {', '.join(known)}")
        found |= dict.fromkeys(known[module])
    check_saved(config, tuple(found), key)
    return tuple(found)


def check_saved(config: ModelConfig, saved: tuple[str, ...], key: str) -> None:
    """UserError for whole weights that an adapter cannot hold: tied ones, which PEFT would untie, and those with factors."""
    if config.tied_embeddings and (tied := [name for name in saved if name in ("embed", "lm_head")]):
        raise UserError(
            f"{key}: {tied[0]} is both the embedding and the output layer of this model (tied), and PEFT would make them two; "
            "leave it out"
        )
    if sparse := [name for name in saved if name.startswith(("layers.expert_", "layers.router"))]:
        raise UserError(
            f"{key}: {sparse[0]} is of a mixture of experts, whose experts and routers are not trained beside an adapter"
        )
    if config.fused and (parts := [name for name in saved if module_of(name.removeprefix("layers."))]):
        raise UserError(f"{key}: {parts[0]} is one tensor with others in this model's checkpoints (Phi); leave it out")
    if both := [name for name in saved if name.removeprefix("layers.") in TARGETS]:
        raise UserError(f"{key}: {both[0]} has low-rank factors; it is not trained whole, too")


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


def _check_kind(file: Path, values: Mapping[str, Any]) -> None:
    if values.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type is {values.get('peft_type')!r:.80}; LORA (with rsLoRA and DoRA) is computed here")
    if values.get("bias", "none") != "none":
        raise UserError(f"{file}: bias is {values['bias']!r:.80}: trained biases are not part of an adapter here")
    start = str(values.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGES_BASE):
        raise UserError(
            f"{file}: init_lora_weights is {values['init_lora_weights']!r:.80}, which changed the model's weights; save it by "
            "PEFT with path_initial_model_for_weight_conversion, which makes it an adapter of the model as it was"
        )
    for key in _OTHERS:
        if values.get(key):
            raise UserError(f"{file}: {key} is {values[key]!r:.80}, which is not computed here")


def _tensors(checkpoint: Checkpoint, base: ModelConfig) -> Iterator[_Found]:
    """Every tensor of the file, and what it is here; UserError for one that is nothing."""
    whole = {t.name: t for t in names.tensors(base)}
    targets = [target for target in TARGETS if base.experts is None or target not in MLP_TARGETS]
    table = {weight.path: weight for weight in rows(dataclasses.replace(base, lora=Adapter(tuple(targets), dora=True)))}
    modules = {_module(base, target, layer): (target, layer) for target in targets for layer in range(base.layers)}
    for name in sorted(checkpoint.shapes):
        inner = name.removeprefix(_PREFIX).replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
        kind = next((kind for kind in _KINDS if inner.endswith(kind)), None)
        module = inner.removesuffix(kind or "")
        if kind is not None and module in modules:
            target, layer = modules[module]
            yield _Found(name, table["layers", f"{target}_{_KINDS[kind]}"], layer)
        elif inner in whole:
            yield _Found(name, whole[inner].weight, whole[inner].layer)
        elif base.experts is not None and ".experts." in inner:
            raise UserError(
                f"tensor {name!r} in {checkpoint.file(name)}: experts of a mixture have no adapters here, attention has"
            )
        else:
            raise UserError(
                f"tensor {name!r} in {checkpoint.file(name)} belongs to nothing that has an adapter here (attention's and the "
                "MLP's projections, and whole modules): is it for another model, or for embeddings?"
            )


def _check_whole(checkpoint: Checkpoint, config: ModelConfig, found: list[_Found], dora: bool) -> None:
    """UserError for a weight that is there for some layers only, and for magnitudes that lack or are too many."""
    modules: dict[str, set] = {A: set(), B: set(), MAGNITUDE: set()}
    layers: dict[str, set] = {}
    for tensor in found:
        target, _, kind = tensor.weight.path[-1].partition("_")
        if tensor.weight.stored is None:
            modules[kind].add((target, tensor.layer))
        elif tensor.layer is not None:
            layers.setdefault(tensor.weight.name, set()).add(tensor.layer)
    for name, there in layers.items():
        if missing := sorted(set(range(config.layers)) - there):
            raise UserError(f"{checkpoint.folder}: {name} is saved whole, but not that of layer {missing[0]}; save all layers")
    if odd := sorted(modules[MAGNITUDE] ^ (modules[A] if dora else set())):
        module = _module(config, *odd[0])
        has = "has no magnitude, though use_dora is true" if dora else "has a magnitude, though use_dora is not true"
        raise UserError(f"{checkpoint.folder}: {module} {has}")


def _ranks(checkpoint: Checkpoint, config: ModelConfig, found: list[_Found]) -> dict[str, tuple[int, ...]]:
    """Target -> its rank in each layer, 0 where it has no adapter; UserError where a factor lacks the other."""
    result: dict[str, list[int]] = {}
    for kind, axis in ((A, 0), (B, 1)):
        there: dict[str, list[int]] = {}
        for tensor in found:
            target, _, own = tensor.weight.path[-1].partition("_")
            if tensor.weight.stored is None and own == kind:
                there.setdefault(target, [0] * config.layers)[tensor.layer] = checkpoint.shapes[tensor.name][axis]
        if kind == A:
            result = there
        for target in result.keys() | there.keys():
            pair = (each.get(target, [0] * config.layers) for each in (result, there))
            for layer, (a, b) in enumerate(zip(*pair, strict=True)):
                if a != b:
                    module = _module(config, target, layer)
                    raise UserError(f"{checkpoint.folder}: {module} has a factor A of rank {a} and a factor B of rank {b}")
    if not result:
        raise UserError(f"{checkpoint.folder / ADAPTER_WEIGHTS} holds no low-rank factors")
    return {target: tuple(ranks) for target, ranks in result.items()}


def _check_ranks(file: Path, values: Mapping[str, Any], config: ModelConfig, shape: dict[str, tuple[int, ...]]) -> None:
    for target, ranks in shape.items():
        for layer, rank in enumerate(ranks):
            module = _module(config, target, layer)
            if rank and rank != (said := _pattern(file, values, "rank", module)):
                raise UserError(f"{file} gives {module} rank {said:g}, but its factors have rank {rank}")


def _pattern(file: Path, values: Mapping[str, Any], what: str, module: str) -> float:
    """Rank or alpha of a module: the first pattern that fits its name, or what holds for all."""
    patterns = values.get(f"{what}_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise UserError(f"{file}: {what}_pattern is {patterns!r:.80}; expected patterns of modules' names with a number each")
    for key in patterns:
        if _compiled(key, f"{file}: {what}_pattern").match(module):
            return number(patterns, key, f"{file}: {what}_pattern", 8.0)
    return number(values, {"rank": "r", "alpha": "lora_alpha"}[what], str(file), 8.0)


@functools.cache
def _compiled(key: str, where: str) -> re.Pattern:
    """A pattern of modules' names; UserError for one that no name needs, and that could take for ever to fit."""
    try:
        if len(key) > 200 or len(re.findall(r"[*+{]", key)) > 4 or re.search(r"\)\s*[*+{]", key):
            raise UserError(f"{where}: {key[:80]!r} repeats too much; write the name of a module, or with .* for a part of it")
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: {key[:80]!r} is no pattern: {error}") from error


def _module(config: ModelConfig, target: str, layer: int) -> str:
    weight = next(weight for weight in rows(config.base) if weight.path == ("layers", target))
    return weight.stored.name.format(layer=layer).removesuffix(".weight")


def _short(weight: Weight) -> str:
    """The last part of a module's name: q_proj."""
    return _last(weight.stored.name.removesuffix(".weight").removesuffix(".bias"))


def _alone(weight: Weight, config: ModelConfig) -> str:
    """A module's name that PEFT, which looks at ends of names, takes for no other: `model.norm`, not `norm`."""
    short = _short(weight)
    others = {_short(other) for other in rows(config.base)} - {short}
    return weight.stored.name.removesuffix(".weight") if any(other.endswith(short) for other in others) else short


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)


def _written(config: ModelConfig) -> Iterator[_Found]:
    adapter, kinds = config.lora, {ours: theirs for theirs, ours in _KINDS.items()}
    for weight in rows(config):
        if weight.stored is None:
            target, _, kind = weight.path[1].partition("_")
            for layer, rank in enumerate(adapter.ranks(target, config.layers)):
                if rank:
                    yield _Found(f"{_PREFIX}{_module(config, target, layer)}{kinds[kind]}", weight, layer)
        elif weight.name in adapter.saved:
            for tensor in names.tensors_of(weight, config):
                yield _Found(_PREFIX + tensor.name, weight, tensor.layer)


def _theirs(tensor: _Found, array: jax.Array, config: ModelConfig) -> jax.Array:
    one = array if tensor.layer is None else array[tensor.layer]
    if tensor.weight.stored is not None:
        return tensor.weight.stored.layout.to_theirs(one)
    target, _, kind = tensor.weight.path[1].partition("_")
    rank = config.lora.ranks(target, config.layers)[tensor.layer]
    if kind == MAGNITUDE:
        return one.reshape(-1)
    return one.reshape(-1, one.shape[-1]).T[:rank] if kind == A else one.reshape(one.shape[0], -1).T[:, :rank]


def _ours(checkpoint: Checkpoint, tensor: _Found, shape: tuple[int, ...]) -> np.ndarray:
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
