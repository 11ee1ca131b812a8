"""What the modules and tensors of an adapter are called in PEFT's files, and which weight of ours each is.

PEFT calls a tensor as the module that it belongs to, `base_model.model.` in front and `.lora_A.weight`, `.lora_B.weight` or
`.lora_magnitude_vector` behind; a module that is trained whole has its own tensor's name behind `base_model.model.`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from align_jax.errors import UserError
from align_jax.hf import names
from align_jax.hf.files import Checkpoint
from align_jax.hf.fused import module_of
from align_jax.models import ModelConfig
from align_jax.models.adapter import MAGNITUDE, MLP_TARGETS, TARGETS, A, Adapter, B
from align_jax.models.weights import Weight, rows

_PREFIX = "base_model.model."
_KINDS = {".lora_A.weight": A, ".lora_B.weight": B, ".lora_magnitude_vector": MAGNITUDE}


@dataclasses.dataclass(frozen=True)
class FoundTensor:
    """A tensor of the file: the row of our table it belongs to, and its layer (None: the weight has no layers)."""

    name: str
    weight: Weight
    layer: int | None


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
    if "layers.sinks" in saved:
        raise UserError(f"{key}: sinks are a parameter and no module, which PEFT cannot save whole; leave them out")
    if config.fused and (parts := [name for name in saved if module_of(name.removeprefix("layers."))]):
        raise UserError(f"{key}: {parts[0]} is one tensor with others in this model's checkpoints (Phi); leave it out")
    if both := [name for name in saved if name.removeprefix("layers.") in TARGETS]:
        raise UserError(f"{key}: {both[0]} has low-rank factors; it is not trained whole, too")


def found_tensors(checkpoint: Checkpoint, base: ModelConfig) -> Iterator[FoundTensor]:
    """Every tensor of the file, and what it is here; UserError for one that is nothing."""
    whole = {t.name: t for t in names.tensors(base)}
    targets = [target for target in TARGETS if base.experts is None or target not in MLP_TARGETS]
    table = {weight.path: weight for weight in rows(dataclasses.replace(base, lora=Adapter(tuple(targets), dora=True)))}
    modules = {module_name(base, target, layer): (target, layer) for target in targets for layer in range(base.layers)}
    for name in sorted(checkpoint.shapes):
        inner = name.removeprefix(_PREFIX).replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
        kind = next((kind for kind in _KINDS if inner.endswith(kind)), None)
        module = inner.removesuffix(kind or "")
        if kind is not None and module in modules:
            target, layer = modules[module]
            yield FoundTensor(name, table["layers", f"{target}_{_KINDS[kind]}"], layer)
        elif inner in whole:
            yield FoundTensor(name, whole[inner].weight, whole[inner].layer)
        elif base.experts is not None and ".experts." in inner:
            raise UserError(
                f"tensor {name!r} in {checkpoint.file(name)}: experts of a mixture have no adapters here, attention has"
            )
        else:
            raise UserError(
                f"tensor {name!r} in {checkpoint.file(name)} belongs to nothing that has an adapter here (attention's and the "
                "MLP's projections, and whole modules): is it for another model, or for embeddings?"
            )


def module_name(config: ModelConfig, target: str, layer: int) -> str:
    """What PEFT calls the module of a target in a layer: `model.layers.0.self_attn.q_proj`."""
    weight = next(weight for weight in rows(config.base) if weight.path == ("layers", target))
    return weight.stored.name.format(layer=layer).removesuffix(".weight")


def _short(weight: Weight) -> str:
    """The last part of a module's name: q_proj."""
    return last_part(weight.stored.name.removesuffix(".weight").removesuffix(".bias"))


def name_alone(weight: Weight, config: ModelConfig) -> str:
    """A module's name that PEFT, which looks at ends of names, takes for no other: `model.norm`, not `norm`."""
    short = _short(weight)
    others = {_short(other) for other in rows(config.base)} - {short}
    return weight.stored.name.removesuffix(".weight") if any(other.endswith(short) for other in others) else short


def last_part(module: str) -> str:
    """The last part of a dotted name."""
    return module.rpartition(".")[2]


def written_tensors(config: ModelConfig) -> Iterator[FoundTensor]:
    """Every tensor that the adapter of a model is written as."""
    adapter, kinds = config.lora, {ours: theirs for theirs, ours in _KINDS.items()}
    for weight in rows(config):
        if weight.stored is None:
            target, _, kind = weight.path[1].partition("_")
            for layer, rank in enumerate(adapter.ranks(target, config.layers)):
                if rank:
                    yield FoundTensor(f"{_PREFIX}{module_name(config, target, layer)}{kinds[kind]}", weight, layer)
        elif weight.name in adapter.saved:
            for tensor in names.tensors_of(weight, config):
                yield FoundTensor(_PREFIX + tensor.name, weight, tensor.layer)
