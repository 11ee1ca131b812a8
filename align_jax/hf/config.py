"""`config.json` of Hugging Face to ModelConfig and back: LLaMA 1 to 3.2, Mistral, Qwen 2 to 3."""

from __future__ import annotations

from typing import Any

from align_jax.errors import UserError
from align_jax.hf.dtypes import resolve_dtype
from align_jax.models import ModelConfig, RopeScaling

# architecture -> (model_type, the head it has)
ARCHITECTURES = {
    f"{family}For{task}": (family.lower(), head)
    for task, head in (("CausalLM", "lm_head"), ("SequenceClassification", "score"))
    for family in ("Llama", "Mistral", "Qwen2", "Qwen3")
}
_KINDS = {"lm_head": "language model", "score": "reward model (a sequence classifier with one label)"}
# What transformers takes where config.json is silent.
_ABSENT = {
    "llama": {"max_position_embeddings": 2048, "sliding_window": None},
    "mistral": {"max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32768, "sliding_window": 4096},
    "qwen3": {"max_position_embeddings": 32768, "sliding_window": 4096, "head_dim": 128},
}
# What a family has that others have not; without a base config, a fresh model is exported as the family that has it.
_PIECES = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}
_THETA = 10000.0
# Fields of a base config that must not survive into an export, because they are written anew or not at all.
_REWRITTEN = {
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "torch_dtype",
    "dtype",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "_name_or_path",
    "num_labels",
}
# The decoder has only these values of what would change the numbers.
_ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0}
_LLAMA3 = {
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_length",
}


def model_config_from_hf(hf: dict[str, Any], where: str, head: str | None = "lm_head") -> ModelConfig:
    """Reads the dict of a `config.json`.

    Args:
      hf: the dict.
      where: the file it came from, for errors.
      head: `lm_head` for a language model, `score` for a sequence classifier (a reward model), None for either.

    Raises:
      UserError: an unsupported architecture, activation, bias, rope type or quantization; a missing or malformed field.
    """
    head = stored_head(hf) if head is None else head
    kind = _model_type(hf, where, head)
    _reject_unsupported(hf, where)
    outputs = len(hf.get("id2label") or [0])
    if head == "score" and outputs != 1:
        raise UserError(f"{where}: its id2label names {outputs} outputs; a reward model has one (num_labels 1)")
    heads, width = _integer(hf, "num_attention_heads", where), _integer(hf, "hidden_size", where)
    # Absent or null: one per query head. Absent for a Mistral, transformers takes 8: that is not guessed here.
    implied = heads if kind == "llama" or "num_key_value_heads" in hf else _REQUIRED
    if hf.get("head_dim", _ABSENT[kind].get("head_dim")) is None and width % heads:
        raise UserError(f"{where}: head_dim is missing and hidden_size {width} is no multiple of {heads} heads")
    window = _window(hf, kind, where)
    theta, scaling = _rope(hf, where)
    try:
        return ModelConfig(
            vocab_size=_integer(hf, "vocab_size", where),
            width=width,
            mlp_width=_integer(hf, "intermediate_size", where),
            layers=_integer(hf, "num_hidden_layers", where),
            heads=heads,
            kv_heads=_integer(hf, "num_key_value_heads", where, implied),
            head_size=_integer(hf, "head_dim", where, _ABSENT[kind].get("head_dim", width // heads)),
            norm_eps=_number(hf, "rms_norm_eps", where),
            rope_theta=theta,
            rope_scaling=scaling,
            sliding_window=None if window is None else _integer({"sliding_window": window}, "sliding_window", where),
            tied_embeddings=_boolean(hf, "tie_word_embeddings", where),
            max_length=_integer(hf, "max_position_embeddings", where, _ABSENT[kind]["max_position_embeddings"]),
            head=head,
            **_PIECES.get(kind, {}),
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def hf_config_from_model(config: ModelConfig, base: dict[str, Any] | None = None, dtype="float32") -> dict[str, Any]:
    """The dict of a `config.json` that transformers reads as this model.

    Rope parameters are written both ways, `rope_theta` and `rope_scaling` (transformers 4) and `rope_parameters` (5).

    Args:
      config: the model.
      base: the `config.json` the model came from: its other fields (token ids, initializer) are kept. Without one, the
        model is a Qwen where it has what only Qwens have, else a Mistral where it has a sliding window, else a LLaMA.
      dtype: the type of the exported weights.

    Raises:
      UserError: a base of an unsupported architecture, or a LLaMA base for a model with a sliding window.
    """
    if base is None:
        kind = _family_of(config)
    else:
        kind = _model_type(base, "base_config", stored_head(base))  # a run may have put another head on it
    _check_family(config, kind)
    kept = {key: value for key, value in (base or {}).items() if key not in _REWRITTEN}
    out = {
        **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
        **kept,
        "architectures": [name for name, has in ARCHITECTURES.items() if has == (kind, config.head)],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": config.max_length,
        "torch_dtype": resolve_dtype(dtype, "dtype").name,
        **_rope_fields(config),
        **({"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} if config.head == "score" else {}),
    }
    if kind == "llama":
        return {**out, "attention_bias": False, "mlp_bias": False}
    if kind == "mistral":
        return {**out, "sliding_window": config.sliding_window}
    used, bias = config.sliding_window is not None, {} if kind == "qwen2" else {"attention_bias": False}
    # From layer `max_window_layers` on there is the window.
    windows = {"use_sliding_window": used, "max_window_layers": 0 if used else config.layers}
    return {**out, **bias, "sliding_window": config.sliding_window, **windows}


def _family_of(config: ModelConfig) -> str:
    """The family that has what this model has; of several the first.

    Raises:
      UserError: there is none.
    """
    pieces = _pieces(config)
    found = next((kind for kind, has in _PIECES.items() if has == pieces), None)
    if pieces and found is None:
        raise UserError(f"no architecture of Hugging Face has {' and '.join(pieces)}: the model cannot be exported")
    return found or ("llama" if config.sliding_window is None else "mistral")


def _check_family(config: ModelConfig, kind: str) -> None:
    """UserError for a model that this family cannot be."""
    if kind == "llama" and config.sliding_window is not None:
        raise UserError(f"base_config is a LLaMA, which has no sliding_window ({config.sliding_window}); use a Mistral's")
    if _pieces(config) != _PIECES.get(kind, {}):
        raise UserError(
            f"base_config is of model_type {kind!r}, which has {_named(_PIECES.get(kind, {}))}, and the model has "
            f"{_named(_pieces(config))}"
        )


def _pieces(config: ModelConfig) -> dict[str, bool]:
    names = dict.fromkeys(name for pieces in _PIECES.values() for name in pieces)
    return {name: True for name in names if getattr(config, name)}


def _named(pieces: dict[str, bool]) -> str:
    return " and ".join(pieces) or f"neither {' nor '.join(name for has in _PIECES.values() for name in has)}"


def _window(hf: dict, kind: str, where: str) -> int | None:
    """The sliding window of all layers."""
    if kind == "llama":
        return None
    window = hf.get("sliding_window", _ABSENT[kind]["sliding_window"])
    if kind == "mistral":
        return window
    # A Qwen has a window written that it does not use, unless `use_sliding_window` says so, and then in its last layers.
    layers = _integer(hf, "num_hidden_layers", where)
    first = _value(hf, "max_window_layers", where, 28)
    if not _boolean(hf, "use_sliding_window", where) or window is None:
        return None
    if types := set(hf.get("layer_types") or ()):  # of one type: they say it themselves
        return window if types == {"sliding_attention"} else None
    if first >= layers:
        return None
    if first > 0:
        raise UserError(
            f"{where}: use_sliding_window with max_window_layers {first} of {layers} layers: a window in some layers alone is "
            "not supported"
        )
    return window


def stored_head(hf: dict[str, Any]) -> str:
    """The head that the architecture of a `config.json` has; `lm_head` where it names none that is known."""
    return ARCHITECTURES.get((hf.get("architectures") or [None])[0], (None, "lm_head"))[1]


def _model_type(hf: dict, where: str, head: str) -> str:
    known = ", ".join(name for name, (_, has) in ARCHITECTURES.items() if has == head)
    names = hf.get("architectures")
    if not names:
        kind = hf.get("model_type")
        if kind not in _ABSENT:
            raise UserError(f"{where}: model_type {kind!r} is not supported; supported: {', '.join(_ABSENT)}")
        return kind
    if len(names) != 1 or ARCHITECTURES.get(names[0], (None, None))[1] != head:
        other = stored_head(hf)
        why = f"is not supported here: it is a {_KINDS[other]}" if names[0] in ARCHITECTURES else "is not supported here"
        raise UserError(f"{where}: architecture {', '.join(map(str, names))} {why}; supported: {known}")
    kind = ARCHITECTURES[names[0]][0]
    if hf.get("model_type", kind) != kind:
        raise UserError(f"{where}: model_type {hf['model_type']!r} contradicts architecture {names[0]}")
    return kind


def _reject_unsupported(hf: dict, where: str) -> None:
    """Names the first setting that would change the numbers and that the decoder does not have."""
    for key, only in _ONLY.items():
        if hf.get(key) not in (None, only):
            raise UserError(f"{where}: {key} is {hf[key]!r}; only {only!r} is supported")
    if hf.get("quantization_config") is not None:
        method = hf["quantization_config"].get("quant_method")
        raise UserError(f"{where}: the weights are quantized (quant_method {method!r}); use the unquantized checkpoint")
    if len(set(hf.get("layer_types") or ())) > 1:
        raise UserError(f"{where}: layer_types mixes {sorted(set(hf['layer_types']))}; all layers must be of one type")


def _rope(hf: dict, where: str) -> tuple[float, RopeScaling | None]:
    """The base and the scaling, from `rope_theta` and `rope_scaling` or from `rope_parameters`."""
    found = []
    for key in ("rope_scaling", "rope_parameters"):
        params = hf.get(key)
        if not params:
            continue
        if not isinstance(params, dict):
            raise UserError(f"{where}: {key} is {params!r}; expected an object")
        theta = _number(params, "rope_theta", f"{where}: {key}", hf.get("rope_theta"))
        found.append((key, theta, _rope_scaling(params, f"{where}: {key}")))
    if not found:
        return _number(hf, "rope_theta", where, _THETA), None
    if len(found) == 2:
        (_, theta, scaling), (_, other_theta, other) = found
        if scaling != other or (theta is not None and other_theta is not None and theta != other_theta):
            raise UserError(f"{where}: rope_scaling {hf['rope_scaling']} contradicts rope_parameters {hf['rope_parameters']}")
        theta = other_theta if theta is None else theta
    else:
        _, theta, scaling = found[0]
    return _THETA if theta is None else theta, scaling


def _rope_scaling(params: dict, where: str) -> RopeScaling | None:
    kind = params.get("rope_type", params.get("type", "default"))
    if params.get("partial_rotary_factor") not in (None, 1.0):
        raise UserError(f"{where}: partial_rotary_factor {params['partial_rotary_factor']!r} is not supported")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", factor=_number(params, "factor", where))
    if kind == "llama3":
        fields = {ours: _number(params, theirs, where) for theirs, ours in _LLAMA3.items()}
        fields["original_length"] = _integer(params, "original_max_position_embeddings", where)
        return RopeScaling("llama3", factor=_number(params, "factor", where), **fields)
    raise UserError(f"{where}: rope type {kind!r} is not supported; supported: default, linear, llama3")


def _rope_fields(config: ModelConfig) -> dict[str, Any]:
    scaling, params = config.rope_scaling, {"rope_type": "default"}
    if scaling is not None:
        params = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            params.update({theirs: getattr(scaling, ours) for theirs, ours in _LLAMA3.items()})
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else dict(params),
        "rope_parameters": {**params, "rope_theta": config.rope_theta},
    }


_REQUIRED = object()


def _integer(hf: dict, key: str, where: str, default: Any = _REQUIRED) -> int:
    value = _value(hf, key, where, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where}: {key} is {value!r}; expected a positive whole number")
    return value


def _number(hf: dict, key: str, where: str, default: Any = _REQUIRED) -> float | None:
    value = _value(hf, key, where, default)
    if value is None and default is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{where}: {key} is {value!r}; expected a positive number")
    return float(value)


def _boolean(hf: dict, key: str, where: str) -> bool:
    value = _value(hf, key, where, False)
    if not isinstance(value, bool):
        raise UserError(f"{where}: {key} is {value!r}; expected true or false")
    return value


def _value(hf: dict, key: str, where: str, default: Any) -> Any:
    """A field; null counts as absent, as it does in transformers."""
    value = hf.get(key)
    if value is None:
        if default is _REQUIRED:
            raise UserError(f"{where}: field {key!r} is missing")
        return default
    return value
