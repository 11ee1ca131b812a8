"""Whether an adapter in PEFT's format is one that is computed here, and of which rank and alpha each module is."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align_jax.errors import UserError
from align_jax.hf.adapter_names import FoundTensor, module_name
from align_jax.hf.fields import number
from align_jax.hf.files import ADAPTER_WEIGHTS, Checkpoint
from align_jax.models import ModelConfig
from align_jax.models.adapter import MAGNITUDE, A, B

# Starts of A and B that change the model's own weights, too: with them, "adapter off" is another model.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Whatever is set of these computes something else.
_OTHERS = (
    *("layer_replication", "alora_invocation_tokens", "trainable_token_indices", "target_parameters", "lora_bias"),
    *("use_qalora", "use_bdlora", "fan_in_fan_out", "arrow_config", "kasa_config", "velora_config", "monteclora_config"),
)


def check_kind(file: Path, values: Mapping[str, Any]) -> None:
    """UserError for a kind of adapter, or a start of one, that is not computed here; names the key."""
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


def check_whole(checkpoint: Checkpoint, config: ModelConfig, found: list[FoundTensor], dora: bool) -> None:
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
        module = module_name(config, *odd[0])
        has = "has no magnitude, though use_dora is true" if dora else "has a magnitude, though use_dora is not true"
        raise UserError(f"{checkpoint.folder}: {module} {has}")


def ranks_found(checkpoint: Checkpoint, config: ModelConfig, found: list[FoundTensor]) -> dict[str, tuple[int, ...]]:
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
                    module = module_name(config, target, layer)
                    raise UserError(f"{checkpoint.folder}: {module} has a factor A of rank {a} and a factor B of rank {b}")
    if not result:
        raise UserError(f"{checkpoint.folder / ADAPTER_WEIGHTS} holds no low-rank factors")
    return {target: tuple(ranks) for target, ranks in result.items()}


def check_ranks(file: Path, values: Mapping[str, Any], config: ModelConfig, shape: dict[str, tuple[int, ...]]) -> None:
    """UserError where adapter_config.json gives a module another rank than its factors have."""
    for target, ranks in shape.items():
        for layer, rank in enumerate(ranks):
            module = module_name(config, target, layer)
            if rank and rank != (said := by_pattern(file, values, "rank", module)):
                raise UserError(f"{file} gives {module} rank {said:g}, but its factors have rank {rank}")


def by_pattern(file: Path, values: Mapping[str, Any], what: str, module: str) -> float:
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
