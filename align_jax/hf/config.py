"""`config.json` of Hugging Face to ModelConfig and back, for the families of `align_jax.hf.families`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from align_jax.errors import UserError
from align_jax.hf.dtypes import resolve_dtype
from align_jax.hf.families import ARCHITECTURES, FAMILIES, Family
from align_jax.hf.fields import REQUIRED, boolean, integer, number
from align_jax.hf.mxfp4 import MXFP4
from align_jax.hf.rope import RopeContext, read_rope, read_rope_by_kind, rope_fields, rope_fields_by_kind
from align_jax.models import ModelConfig

_KINDS = {"lm_head": "language model", "score": "reward model (a sequence classifier with one label)"}
_KINDS_OF_FIELDS = (
    ("architectures", list, "a list of names"),
    ("layer_types", list, "a list of names"),
    ("model_type", str, "a name"),
    ("id2label", dict | list, "a name for each output"),
    ("quantization_config", dict, "an object"),
)
_THETA = 10000.0
# What our fields are called there, for errors.
_THEIRS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "norm_eps": "rms_norm_eps",
    "max_length": "max_position_embeddings",
}
# Fields of a base config that must not survive into an export, because they are written anew or not at all.
_REWRITTEN = {
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "rope_local_base_freq",
    "torch_dtype",
    "dtype",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "_name_or_path",
    "num_labels",
    "quantization_config",
}
_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "clamped_swiglu": "silu"}


def model_config_from_hf(hf: dict[str, Any], where: str, head: str | None = "lm_head") -> ModelConfig:
    """Reads the dict of a `config.json`.

    Args:
      hf: the dict.
      where: the file it came from, for errors.
      head: `lm_head` for a language model, `score` for a sequence classifier (a reward model), None for either.

    Raises:
      UserError: an unsupported architecture, activation, bias, rope type or quantization; a missing or malformed field.
    """
    _check_kinds(hf, where)
    head = stored_head(hf) if head is None else head
    family = FAMILIES[_model_type(hf, where, head)]
    _reject_unsupported(hf, where, family)
    outputs = len(hf.get("id2label") or [0])
    if head == "score" and outputs != 1:
        raise UserError(f"{where}: its id2label names {outputs} outputs; a reward model has one (num_labels 1)")
    absent = family.absent
    heads = integer(hf, "num_attention_heads", where, absent.get("num_attention_heads", REQUIRED))
    width = integer(hf, "hidden_size", where)
    # Null is one per query head, and so is absent for some families. Absent for a Mistral, transformers takes 8: that is not
    # guessed here.
    implied = heads if "num_key_value_heads" in hf else absent.get("num_key_value_heads", REQUIRED) or heads
    if hf.get("head_dim", absent.get("head_dim")) is None and width % heads:
        raise UserError(f"{where}: head_dim is missing and hidden_size {width} is no multiple of {heads} heads")
    size = integer(hf, "head_dim", where, absent.get("head_dim", width // heads))
    length = integer(hf, "max_position_embeddings", where, absent["max_position_embeddings"])
    try:
        values = {
            "vocab_size": integer(hf, "vocab_size", where, absent.get("vocab_size", REQUIRED)),
            "width": width,
            "mlp_width": integer(hf, "intermediate_size", where),
            "layers": integer(hf, "num_hidden_layers", where),
            "heads": heads,
            "kv_heads": integer(hf, "num_key_value_heads", where, implied),
            "head_size": size,
            "norm_eps": number(hf, "rms_norm_eps", where, absent.get("rms_norm_eps", REQUIRED)),
            "tied_embeddings": boolean(hf, "tie_word_embeddings", where, absent.get("tie_word_embeddings", False)),
            "max_length": length,
            "head": head,
            **_rope(hf, where, family, length, size),
            **family.pieces,
            **family.read(hf, where),
        }
        if values.get("attention_scale") is not None and math.isclose(values["attention_scale"], size**-0.5):
            del values["attention_scale"]  # as without
        return ModelConfig(**values)
    except UserError:
        raise
    except ValueError as error:
        ours, colon, said = str(error).partition(":")
        raise UserError(f"{where}: {_THEIRS.get(ours, ours)}{colon}{said}") from error
    except (TypeError, AttributeError, KeyError, OverflowError, ZeroDivisionError) as error:
        raise UserError(f"{where}: a field has a value of a kind that is not understood: {error}") from error


def hf_config_from_model(config: ModelConfig, base: dict[str, Any] | None = None, dtype="float32") -> dict[str, Any]:
    """The dict of a `config.json` that transformers reads as this model.

    Rope parameters are written both ways, `rope_theta` and `rope_scaling` (transformers 4) and `rope_parameters` (5).

    Args:
      config: the model.
      base: the `config.json` the model came from: its other fields (token ids, initializer) are kept. Without one, the
        model is of the first family of `align_jax.hf.families` that it can be.
      dtype: the type of the exported weights.

    Raises:
      UserError: a base of an unsupported architecture, or of one that this model cannot be, or a reward model of a family
        without sequence classifiers.
    """
    config = dataclasses.replace(config.plain, rope_length=None)  # which are of a run, not of the model
    if base is None:
        family = _family_of(config)
    else:
        family = FAMILIES[_model_type(base, "base_config", stored_head(base))]  # a run may have put another head on it
    if config.head == "score" and not family.classifies:
        raise UserError(
            f"transformers has no sequence classifier of model_type {family.kind!r}, so that nothing could load an export of "
            "this reward model; give its run folder where a reward model is asked for (score.reward_model, "
            "rounds.reward_model)"
        )
    written = _written(config, family, base or {}, dtype)
    if missing := _unheld(config, written):
        raise UserError(
            f"base_config is of model_type {family.kind!r}, which cannot hold this model's "
            f"{' and '.join(f'{name} ({getattr(config, name)!r})' for name in missing)}"
        )
    return written


def _written(config: ModelConfig, family: Family, base: dict[str, Any], dtype) -> dict[str, Any]:
    kept = {key: value for key, value in base.items() if key not in _REWRITTEN}
    rope = rope_fields(config) if family.local_rope is None else rope_fields_by_kind(config, family.local_rope[1])
    return {
        **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
        **kept,
        "architectures": [family.architecture(config.head)],
        "model_type": family.kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        family.activation: _ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": config.max_length,
        "torch_dtype": resolve_dtype(dtype, "dtype").name,
        **rope,
        **({"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} if config.head == "score" else {}),
        **family.write(config),
    }


def _unheld(config: ModelConfig, written: dict[str, Any]) -> list[str]:
    """The fields of a model that its written form does not give back."""
    try:
        read = model_config_from_hf(written, "config.json", config.head)
    except UserError:
        return ["shape"]
    return [field.name for field in dataclasses.fields(config) if getattr(read, field.name) != getattr(config, field.name)]


def _family_of(config: ModelConfig) -> Family:
    """The first family that can hold a model.

    Raises:
      UserError: there is none.
    """
    for family in FAMILIES.values():
        if not _unheld(config, _written(config, family, {}, "float32")):
            return family
    usual = _unheld(config, _written(config, FAMILIES["llama"], {}, "float32"))
    raise UserError(f"no architecture of Hugging Face has {' and '.join(usual)} like this: the model cannot be exported")


def stored_head(hf: dict[str, Any]) -> str:
    """The head that the architecture of a `config.json` has; `lm_head` where it names none that is known."""
    return ARCHITECTURES.get((hf.get("architectures") or [None])[0], (None, "lm_head"))[1]


def _check_kinds(hf: dict, where: str) -> None:
    """UserError for a field that is not of its kind; null is always one."""
    for key, kind, what in _KINDS_OF_FIELDS:
        if not isinstance(hf.get(key), kind | None):
            raise UserError(f"{where}: {key} is {hf[key]!r:.80}; expected {what}")
    for key in ("architectures", "layer_types"):
        if not all(isinstance(name, str) for name in hf.get(key) or []):
            raise UserError(f"{where}: {key} is {hf[key]!r:.80}; expected a list of names")


def _model_type(hf: dict, where: str, head: str) -> str:
    known = ", ".join(name for name, (_, has) in ARCHITECTURES.items() if has == head)
    names = hf.get("architectures")
    if not names:
        kind = hf.get("model_type")
        if kind not in FAMILIES:
            raise UserError(f"{where}: model_type {kind!r} is not supported; supported: {', '.join(FAMILIES)}")
        return kind
    if len(names) != 1 or ARCHITECTURES.get(names[0], (None, None))[1] != head:
        other = stored_head(hf)
        why = f"is not supported here: it is a {_KINDS[other]}" if names[0] in ARCHITECTURES else "is not supported here"
        raise UserError(f"{where}: architecture {', '.join(map(str, names))} {why}; supported: {known}")
    kind = ARCHITECTURES[names[0]][0]
    if hf.get("model_type", kind) != kind:
        raise UserError(f"{where}: model_type {hf['model_type']!r} contradicts architecture {names[0]}")
    return kind


def _reject_unsupported(hf: dict, where: str, family: Family) -> None:
    """Names the first setting that would change the numbers and that the decoder does not have."""
    activation = _ACTIVATIONS[family.pieces.get("activation", "silu")]
    for key, only in {family.activation: activation, **family.only}.items():
        if hf.get(key) not in (None, only):
            raise UserError(f"{where}: {key} is {hf[key]!r}; only {only!r} is supported")
    if hf.get("quantization_config") is not None:
        method = hf["quantization_config"].get("quant_method")
        if family.packed and method == MXFP4:
            return
        raise UserError(f"{where}: the weights are quantized (quant_method {method!r}); use the unquantized checkpoint")


def _rope(hf: dict, where: str, family: Family, length: int, size: int) -> dict[str, Any]:
    """The values of ModelConfig that say how queries and keys are rotated."""
    if "rope_scaling" in family.absent and not hf.get("rope_scaling") and not hf.get("rope_parameters"):
        hf = {**hf, "rope_scaling": family.absent["rope_scaling"]}
    context = RopeContext(length, size, family.absent.get("rope_theta", _THETA), family.rotates_a_part)
    if family.local_rope is None:
        theta, scaling, rotated = read_rope(hf, where, context)
        return {"rope_theta": theta, "rope_scaling": scaling, "rotary_size": rotated}
    (theta, scaling, rotated), local = read_rope_by_kind(hf, where, context, *family.local_rope)
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_size": rotated, "local_rope_theta": local}
