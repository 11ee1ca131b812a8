"""The rotary embedding of a `config.json`: `rope_theta` and `rope_scaling` (transformers 4), or `rope_parameters` (5)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from align_jax.errors import UserError
from align_jax.hf.fields import boolean, integer, number, numbers
from align_jax.models import ModelConfig, RopeScaling

_LLAMA3 = {
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_length",
}
FULL, SLIDING = "full_attention", "sliding_attention"


class Rotation(NamedTuple):
    """How queries and keys are rotated: the base, the scaling, and how many dimensions of a head, None for all."""

    theta: float
    scaling: RopeScaling | None
    size: int | None


class RopeContext(NamedTuple):
    """What a rotation is read with: the context, the size of a head, the base where none is named, and whether the family
    rotates a part of a head."""

    max_length: int
    head_size: int
    theta: float
    partial: bool


def read_rope(hf: dict, where: str, context: RopeContext) -> Rotation:
    """The rotation of all layers."""
    found = []
    for key in ("rope_scaling", "rope_parameters"):
        params = hf.get(key)
        if not params:
            continue
        if not isinstance(params, dict):
            raise UserError(f"{where}: {key} is {params!r}; expected an object")
        if FULL in params or SLIDING in params:
            raise UserError(f"{where}: {key} differs by layer type, which this family of models does not have")
        theta = number(params, "rope_theta", f"{where}: {key}", hf.get("rope_theta"))
        found.append((theta, *_scaling(hf, params, f"{where}: {key}", context)))
    if not found:
        return Rotation(number(hf, "rope_theta", where, context.theta), None, _rotated(hf, where, context))
    if len(found) == 2:
        (theta, scaling, size), (other_theta, other, other_size) = found
        contradict = theta is not None and other_theta is not None and theta != other_theta
        if scaling != other or size != other_size or contradict:
            raise UserError(f"{where}: rope_scaling {hf['rope_scaling']} contradicts rope_parameters {hf['rope_parameters']}")
        theta = other_theta if theta is None else theta
    else:
        theta, scaling, size = found[0]
    return Rotation(context.theta if theta is None else theta, scaling, size)


def read_rope_by_kind(
    hf: dict, where: str, context: RopeContext, local: float, local_key: str | None
) -> tuple[Rotation, float]:
    """The rotation of layers without a window, and the base of those with one, which is not scaled.

    Args:
      local: that base where none is named. local_key: the field that names it in transformers 4, if there is one.
    """
    params = hf.get("rope_parameters")
    of_kind = isinstance(params, dict) and (FULL in params or SLIDING in params)
    full, sliding = ((params.get(FULL) or {}), (params.get(SLIDING) or {})) if of_kind else (params, {})
    rotation = read_rope({**hf, "rope_parameters": full}, where, context)
    kind = sliding.get("rope_type", sliding.get("type", "default"))
    if kind != "default":
        raise UserError(f"{where}: rope_parameters.{SLIDING} is of type {kind!r}; only 'default' is supported")
    named = number(hf, local_key, where, local) if local_key else local
    return rotation, number(sliding, "rope_theta", f"{where}: rope_parameters.{SLIDING}", named)


def rope_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields of a `config.json` for a model whose layers are rotated alike, for transformers 4 and 5."""
    params = _params(config.rope_scaling)
    partial = {} if config.rotary_size is None else {"partial_rotary_factor": config.rotary_size / config.head_size}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else dict(params),
        "rope_parameters": {**params, "rope_theta": config.rope_theta, **partial},
        **partial,
    }


def rope_fields_by_kind(config: ModelConfig, local_key: str | None) -> dict[str, Any]:
    """The same where layers with a window have a base of their own."""
    fields = rope_fields(config)
    local = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    sliding = {"rope_type": "default", "rope_theta": local}
    named = {local_key: local} if local_key else {}
    return {**fields, **named, "rope_parameters": {FULL: fields["rope_parameters"], SLIDING: sliding}}


def _rotated(hf: dict, where: str, context: RopeContext, params: dict | None = None) -> int | None:
    """How many dimensions of a head are rotated; None is all."""
    found = {"partial_rotary_factor": (params or {}).get("partial_rotary_factor", hf.get("partial_rotary_factor"))}
    factor = number(found, "partial_rotary_factor", where, 1.0)
    if factor == 1:
        return None
    if not context.partial:
        raise UserError(f"{where}: partial_rotary_factor is {factor!r}; only 1.0 is supported for this family of models")
    return int(context.head_size * factor)


def _scaling(hf: dict, params: dict, where: str, context: RopeContext) -> tuple[RopeScaling | None, int | None]:
    """The scaling and the rotated size that a dict of rope parameters names."""
    kind = params.get("rope_type", params.get("type", "default"))
    if kind in ("su", "yarn") and "short_factor" in params:  # older names of longrope
        kind = "longrope"
    size = _rotated(hf, where, context, params)
    if kind == "default":
        return None, size
    if kind not in _READERS:
        raise UserError(f"{where}: rope type {kind!r} is not supported; supported: default, {', '.join(_READERS)}")
    return _READERS[kind](hf, params, where, context, size or context.head_size), size


def _linear(hf, params, where, context, size):
    return RopeScaling("linear", factor=number(params, "factor", where))


def _llama3(hf, params, where, context, size):
    fields = {ours: number(params, theirs, where) for theirs, ours in _LLAMA3.items()}
    fields["original_length"] = integer(params, "original_max_position_embeddings", where)
    return RopeScaling("llama3", factor=number(params, "factor", where), **fields)


def _dynamic(hf, params, where, context, size):
    return RopeScaling("dynamic", factor=number(params, "factor", where), original_length=context.max_length)


def _yarn(hf, params, where, context, size):
    original = _original(hf, params, where, context)
    factor = number(params, "factor", where, context.max_length / original)

    def by_length(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    scales = params.get("mscale"), params.get("mscale_all_dim")
    usual = by_length(scales[0]) / by_length(scales[1]) if all(scales) else by_length(1.0)
    return RopeScaling(
        "yarn",
        factor=factor,
        original_length=original,
        attention_factor=number(params, "attention_factor", where, usual),
        beta_fast=number({"beta_fast": params.get("beta_fast") or None}, "beta_fast", where, 32.0),
        beta_slow=number({"beta_slow": params.get("beta_slow") or None}, "beta_slow", where, 1.0),
        truncate=boolean(params, "truncate", where, True),
    )


def _longrope(hf, params, where, context, size):
    original = _original(hf, params, where, context)
    factor = number(params, "factor", where, context.max_length / original)
    return RopeScaling(
        "longrope",
        factor=factor,
        original_length=original,
        attention_factor=number(params, "attention_factor", where, _usual_of_longrope(factor, original)),
        short_factors=numbers(params, "short_factor", where, size // 2),
        long_factors=numbers(params, "long_factor", where, size // 2),
    )


_READERS = {"linear": _linear, "llama3": _llama3, "dynamic": _dynamic, "yarn": _yarn, "longrope": _longrope}


def _original(hf, params, where, context) -> int:
    key = "original_max_position_embeddings"
    return integer(hf, key, where, integer(params, key, where, context.max_length))


def _usual_of_longrope(factor: float, original: int) -> float:
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _params(scaling: RopeScaling | None) -> dict[str, Any]:
    """The rope parameters of a scaling, without the base."""
    if scaling is None:
        return {"rope_type": "default"}
    params = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        return params | {theirs: getattr(scaling, ours) for theirs, ours in _LLAMA3.items()}
    original = {"original_max_position_embeddings": scaling.original_length, "attention_factor": scaling.attention_factor}
    if scaling.kind == "yarn":
        ramp = {name: getattr(scaling, name) for name in ("beta_fast", "beta_slow", "truncate")}
        return params | original | ramp
    if scaling.kind == "longrope":
        lists = {f"{name}_factor": list(getattr(scaling, f"{name}_factors")) for name in ("short", "long")}
        return params | original | lists
    return params


def longrope_of_phi(config: ModelConfig) -> dict[str, Any]:
    """A Phi-3's fields of longrope: transformers 4 takes three entries of `rope_scaling`, and the original context beside."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "longrope":
        return {}
    lists = {f"{name}_factor": list(getattr(scaling, f"{name}_factors")) for name in ("short", "long")}
    usual = _usual_of_longrope(config.max_length / scaling.original_length, scaling.original_length)
    other = {} if math.isclose(usual, scaling.attention_factor) else {"attention_factor": scaling.attention_factor}
    return {
        "rope_scaling": {"type": "longrope", **lists, **other},
        "original_max_position_embeddings": scaling.original_length,
    }
