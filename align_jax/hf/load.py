"""Import: a Hugging Face checkpoint, tensor by tensor, straight into (sharded) device arrays.

Host memory holds at most one tensor at a time, and of it only what this host's devices need. A tensor is put on the
devices as it is stored; they transpose it, convert it and write it into its place of the stacked array. The number of
compiled programs depends on the name table, not on the depth.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from align_jax.errors import UserError
from align_jax.hf import names
from align_jax.hf.adapter import load_adapter, read_adapter
from align_jax.hf.config import model_config_from_hf
from align_jax.hf.dtypes import resolve_dtype
from align_jax.hf.files import Checkpoint, read_json, resolve_folder
from align_jax.hf.mxfp4 import Unpacked
from align_jax.models import Decoder, ModelConfig, quantized, weight_shardings
from align_jax.models.adapting import with_adapter
from align_jax.models.layouts import Layout
from align_jax.models.quantized import Quantized
from align_jax.models.weights import Path, Weight, rows
from align_jax.terminal import plural

_COMPARED_BYTES = 64 << 20


def load_config(path: str | os.PathLike, head: str | None = "lm_head") -> tuple[ModelConfig, dict[str, Any]]:
    """The ModelConfig of a folder or hub id, and the dict of its `config.json`.

    Raises:
      UserError: see `model_config_from_hf`, `resolve_folder`.
    """
    file = resolve_folder(path) / "config.json"
    if not file.exists() and (file.parent / "config.yaml").exists():
        where = str(file.parent)
        raise UserError(f"{where} is the folder of a run; write its model first: align_jax.export({where!r}, OUT)")
    hf = read_json(file)
    return model_config_from_hf(hf, str(file), head), hf


def load_generation_config(path: str | os.PathLike) -> dict[str, Any] | None:
    """The dict of `generation_config.json` of a folder or hub id, or None where it has none."""
    file = resolve_folder(path) / "generation_config.json"
    return read_json(file) if file.is_file() else None


def load_model(
    path: str | os.PathLike,
    mesh: Mesh | None = None,
    dtype=jnp.bfloat16,
    param_dtype=jnp.float32,
    head: str = "lm_head",
    *,
    adapter: str | os.PathLike | None = None,
    quantize: Literal["int8", "int4", "nf4"] | None = None,
) -> Decoder:
    """Loads a language model, or a reward model, of any family that `align_jax.hf.families` lists.

    Args:
      path: a folder in Hugging Face format, or a hub id.
      mesh: where the weights go (axes of `align_jax.parallel.mesh.make_mesh`); None: the default device.
      dtype: what products are computed in; a type or its name.
      param_dtype: what weights are kept in; a type or its name.
      head: `lm_head`, or `score` for a reward model (a sequence classifier with one label).
      adapter: folder of an adapter in PEFT's format on top of it; its factors are in float32.
      quantize: keep the projections of all layers in few bits.

    Returns:
      The model: `model(tokens [B, T]) -> logits [B, T, V]`; a reward model is for `align_jax.response_scores`.

    Raises:
      UserError: see `load_config`, `load_weights`, `read_adapter`; or a reward model is asked for, and there is no score.
    """
    compute = resolve_dtype(dtype, "dtype")
    folder = resolve_folder(path)
    # The score of a reward model may be in the adapter alone.
    stored, _ = load_config(folder, None if adapter is not None and head == "score" else head)
    config = dataclasses.replace(stored, quantize=quantize, head=head)
    stored = dataclasses.replace(stored, quantize=quantize)
    shardings = None if mesh is None else weight_shardings(stored, mesh)
    weights = load_weights(folder, stored, shardings, param_dtype, skip=() if stored.head == head else (stored.head,))
    if adapter is not None:
        config = dataclasses.replace(config, lora=read_adapter(adapter, config))
        if head == "score" != stored.head and "score" not in config.lora.saved:
            raise UserError(f"{adapter} has no score, and {path} has none: together they are no reward model, but one to train")
        weights = with_adapter(weights, load_adapter(adapter, config, mesh and weight_shardings(config, mesh)))
    return Decoder(config, weights, dtype=compute)


def load_weights(
    path: str | os.PathLike,
    config: ModelConfig,
    shardings: dict | None = None,
    param_dtype=jnp.float32,
    *,
    skip: Collection[str] = (),
) -> dict:
    """Loads the weights that `Decoder` takes.

    Args:
      path: a folder in Hugging Face format, or a hub id.
      config: the model's config, as `load_config` gives it.
      shardings: nested dict of NamedShardings as `weight_shardings` gives it; None: the default device.
      param_dtype: what weights are converted to; a type or its name.
      skip: top-level names of weights that are left out, such as a head that another one will replace.

    Returns:
      Nested dict of jax.Arrays, see `align_jax.models.weight_shapes`.

    Raises:
      UserError: a missing, unexpected, duplicated or misshapen tensor, or one with weights that are not finite, by name; see
        also `Checkpoint`.
    """
    dtype = resolve_dtype(param_dtype, "param_dtype")
    checkpoint = Unpacked(Checkpoint(resolve_folder(path)))
    check_tensors(checkpoint, config)
    if checkpoint.packed:
        warnings.warn(
            f"{checkpoint.folder}: the weights of experts are MXFP4; they are dequantized, and kept as {dtype}", stacklevel=2
        )
    wanted = [weight for weight in rows(config) if weight.path[0] not in skip]
    places = None if shardings is None else flatten_dict(shardings)
    return unflatten_dict({w.path: _load(checkpoint, w, config, _sharding_of(w, places), dtype) for w in wanted})


def check_weights(path: str | os.PathLike, config: ModelConfig) -> None:
    """Whether `load_weights` would find what it needs, from the files' headers alone; raises as it does."""
    check_tensors(Unpacked(Checkpoint(resolve_folder(path))), config)


def check_tensors(checkpoint: Checkpoint | Unpacked, config: ModelConfig) -> None:
    """Compares the checkpoint's names, shapes and types with what the config asks for, before any weight is read.

    Raises:
      UserError: the first tensors that are missing, unexpected or misshapen, a stored head that differs from the
        embedding it is tied to, or a reward model with several outputs.
    """
    expected = {t.name: t for t in names.wholes(config)}
    stored = {name for name in checkpoint.shapes if not name.endswith(names.IGNORED_SUFFIX)}
    tied_head = config.head == "lm_head" and config.tied_embeddings and "lm_head.weight" in stored
    if tied_head:
        stored.discard("lm_head.weight")
    missing = [name for name in expected if name not in stored]
    unexpected = sorted(stored - expected.keys())
    if missing:
        hint = " (config.json does not tie the embeddings)" if "lm_head.weight" in missing else ""
        raise UserError(f"{checkpoint.folder}: missing {_some(missing)}{hint}")
    if unexpected:
        raise UserError(f"{checkpoint.folder}: unexpected {_some(unexpected)}; config.json describes no such weight")
    for name, tensor in expected.items():
        if name == "score.weight" and checkpoint.shapes[name][0] != 1:
            raise UserError(
                f"{checkpoint.folder}: its score head has {checkpoint.shapes[name][0]} outputs; a reward model has one "
                "(num_labels 1)"
            )
        if checkpoint.shapes[name] != tensor.shape:
            raise UserError(
                f"tensor {name!r} in {checkpoint.file(name)} has shape {list(checkpoint.shapes[name])}, "
                f"but config.json asks for {list(tensor.shape)}"
            )
        checkpoint.dtype(name)
    if tied_head:
        _check_tied(checkpoint)


def _some(found: list[str]) -> str:
    listed = ", ".join(repr(name) for name in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"tensor{'s' if len(found) > 1 else ''} {listed}{more}"


def _check_tied(checkpoint: Checkpoint) -> None:
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    shape = checkpoint.shapes[embed]
    # Tools that convert a checkpoint may have left one of the two in another type.
    coarser = min(checkpoint.dtype(embed), checkpoint.dtype(head), key=lambda dtype: jnp.finfo(dtype).nmant)
    equal = checkpoint.shapes[head] == shape
    step = max(1, _COMPARED_BYTES // (shape[1] * checkpoint.dtype(embed).itemsize))
    for start in range(0, shape[0], step):
        rows = (slice(start, min(start + step, shape[0])), slice(0, shape[1]))
        equal = equal and len({checkpoint.read(name, rows).astype(coarser).tobytes() for name in (embed, head)}) == 1
    if not equal:
        raise UserError(
            f"{checkpoint.folder}: config.json ties the embeddings, but {head!r} differs from {embed!r}; "
            "set tie_word_embeddings to false to use both"
        )


def _sharding_of(weight: Weight, shardings: dict[Path, NamedSharding] | None) -> NamedSharding | None:
    if shardings is None:
        return None
    sharding = shardings.get(weight.path)
    if not isinstance(sharding, NamedSharding | Quantized):
        raise TypeError(f"shardings: {weight.name} is {sharding!r}; expected a NamedSharding")
    return sharding


def _load(
    checkpoint: Checkpoint | Unpacked, weight: Weight, config: ModelConfig, sharding: NamedSharding | None, dtype: np.dtype
) -> jax.Array:
    """One of our arrays, from one tensor or from the tensors of all layers."""
    shape, layout = weight.shape(config), weight.stored.layout
    few = (config.quantize, weight.outputs) if weight.few_bits(config) else None
    put_as = _stored_sharding(weight, sharding.values if isinstance(sharding, Quantized) else sharding, shape)
    struct = jax.ShapeDtypeStruct(shape, dtype) if few is None else quantized.structs(shape, *few)
    stacked = _zeros(struct, sharding)() if weight.stacked else None
    for tensor in names.tensors_of(weight, config):
        piece = _put(checkpoint, tensor, put_as)
        if stacked is None:
            whole, wrong = _convert(layout, shape, dtype, sharding)(piece)
            _check_finite(checkpoint, tensor.name, dtype, wrong)
            return whole
        stacked, wrong = _write(layout, sharding, few, shape[len(tensor.place) :])(
            stacked, piece, np.array(tensor.place, np.int32)
        )
        # The next piece is read only when this one has left the host.
        _check_finite(checkpoint, tensor.name, dtype, wrong)
        jax.block_until_ready(stacked)
        del piece
    return stacked


def _check_finite(checkpoint: Checkpoint | Unpacked, name: str, dtype: np.dtype, wrong: jax.Array) -> None:
    """UserError where a tensor has weights that are not finite; waits until they were counted."""
    if count := int(wrong):
        raise UserError(
            f"tensor {name!r} in {checkpoint.file(name)} has {plural(count, 'weight')} that {'is' if count == 1 else 'are'} "
            f"NaN or infinite in {dtype}, and so would be what is computed; mend the checkpoint"
        )


def _stored_sharding(weight: Weight, sharding: NamedSharding | None, shape: tuple[int, ...]) -> NamedSharding | None:
    """The sharding of one stored tensor, such that turning it into ours moves nothing between devices."""
    if sharding is None:
        return None
    leading = weight.stacked + weight.by_expert
    spec, ndim = tuple(sharding.spec)[leading:], len(shape) - leading
    return NamedSharding(sharding.mesh, weight.stored.layout.their_spec(PartitionSpec(*spec), ndim))


def _put(checkpoint: Checkpoint | Unpacked, tensor: names.Tensor, sharding: Sharding | None) -> jax.Array:
    """One stored tensor on the devices, as it is stored; a part that several devices hold is read once."""
    if sharding is None:
        return jnp.asarray(tensor.read(checkpoint, ((0, n) for n in tensor.shape)))
    parts: dict[tuple, np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index, tensor.shape, strict=True))
        if bounds not in parts:
            parts[bounds] = tensor.read(checkpoint, bounds)
        return parts[bounds]

    return jax.make_array_from_callback(tensor.shape, sharding, part, dtype=checkpoint.dtype(tensor.name))


@functools.lru_cache(maxsize=256)
def _zeros(struct: jax.ShapeDtypeStruct | Quantized, sharding: Sharding | Quantized | None):
    return jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), struct), out_shardings=sharding)


@functools.lru_cache(maxsize=256)
def _convert(layout: Layout, shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding | None):
    def convert(piece: jax.Array) -> tuple[jax.Array, jax.Array]:
        ours = layout.to_ours(piece, shape).astype(dtype)
        return ours, _not_finite(ours)

    return jax.jit(convert, out_shardings=_beside_count(sharding))


@functools.lru_cache(maxsize=256)
def _write(layout: Layout, sharding: Sharding | Quantized | None, few: tuple[str, int] | None, shape: tuple[int, ...]):
    """The program that writes a piece into a layer, or an expert of one, of an array, in place, and counts what is not finite.

    Args:
      few: what `quantize` takes, of a weight that is kept in few bits. shape: of the piece.
    """

    def write(stacked: jax.Array | Quantized, piece: jax.Array, place: jax.Array) -> tuple[jax.Array | Quantized, jax.Array]:
        ours = layout.to_ours(piece, shape)
        ours = ours.astype(stacked.dtype) if few is None else ours
        count = place.shape[0]

        def put(all_, one):
            start = (*(place[n] for n in range(count)), *(0,) * one.ndim)
            return jax.lax.dynamic_update_slice(all_, one.reshape((1,) * count + one.shape), start)

        return jax.tree.map(put, stacked, ours if few is None else quantized.quantize(ours, *few)), _not_finite(ours)

    return jax.jit(write, donate_argnums=0, out_shardings=_beside_count(sharding))


def _not_finite(weights: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(weights), dtype=jnp.int32)


def _beside_count(sharding: Sharding | None):
    """The shardings of an array and of a number that every process reads."""
    if sharding is None:
        return None
    return sharding, NamedSharding(jax.tree.leaves(sharding)[0].mesh, PartitionSpec())
