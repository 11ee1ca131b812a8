"""Which model a config, a folder or a name means; no weight is loaded.

    source = starting_model(config)               # the `model` section
    source = model_at("runs/mpo", "lm_head")      # a run folder, a Hugging Face folder or a hub id
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from align_jax import hf
from align_jax.config import Config
from align_jax.errors import UserError
from align_jax.models import ModelConfig
from align_jax.objectives import name_of
from align_jax.parallel.processes import from_first
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.source import AdaptedModel, FreshModel, MergedModel, ModelSource, StoredModel, TrainedModel, stored_model


def starting_model(config: Config) -> ModelSource:
    """The model that the `model` section names, with the adapter of `lora` on it; no weight is loaded.

    Raises:
      UserError: see `hf.resolve_folder`, `hf.load_config` and `hf.read_adapter`.
    """
    plain = _without_adapter(config)
    return plain if config.lora is None else _adapted(plain, config.lora.path, config, "lora.path")


def _without_adapter(config: Config) -> ModelSource:
    model, head, seed = config.model, config.head, config.run.seed
    tokenizer, template = model.tokenizer or model.at, model.chat_template
    if model.path is None:
        shape = dataclasses.replace(model.fresh_config(), head=head)
        plain = FreshModel(shape=shape, tokenizer_at=tokenizer, key="model", chat_template=template, seed=seed)
    else:
        # A reward model may start from a language model.
        stored = stored_model(model.at, head, "model", None if head == "score" else head)
        plain = dataclasses.replace(stored, tokenizer_at=tokenizer, chat_template=template, seed=seed)
    return dataclasses.replace(plain, shape=dataclasses.replace(plain.shape, quantize=model.quantize))


def _adapted(under: ModelSource, folder: str | None, config: Config, key: str) -> AdaptedModel:
    """A model with the adapter in a folder, or with the fresh one that the `lora` section describes."""
    try:
        if folder is None:
            adapter = config.lora.adapter(
                hf.saved_weights(under.shape, config.lora.modules_to_save), under.shape.experts is not None
            )
        else:
            adapter = hf.read_adapter(folder, under.shape)
            score = hf.saved_weights(under.shape, [])  # of a reward model, also where the adapter is a language model's
            saved = tuple(dict.fromkeys([*adapter.saved, *score]))
            adapter = dataclasses.replace(adapter, dropout=config.lora.dropout, saved=saved)
    except UserError as error:
        raise error if folder is None else UserError(f"{key}: {error}") from error
    common = {name: getattr(under, name) for name in ("tokenizer_at", "key", "chat_template", "hf_config")}
    common["key"] = key if key.startswith("reference.") else under.key
    shape = dataclasses.replace(under.shape, lora=adapter)
    return AdaptedModel(shape=shape, under=under, folder=folder, seed=config.run.seed, **common)


def model_at(given: str | os.PathLike, head: str, key: str) -> ModelSource:
    """The model of a run folder (its newest checkpoint), a Hugging Face folder or a hub id; no weight is loaded.

    Args:
      head: that it must have: `lm_head` or `score`. key: what the config calls it, for errors.

    Raises:
      UserError: a run without a checkpoint, a model with another head, or neither of the two; opens with `key`.
    """
    folder = _chosen(given)
    is_adapter = (folder.path / hf.ADAPTER).exists()  # refused below, with what to do
    if folder.path.is_dir() and not folder.is_run and not is_adapter and not (folder.path / "config.json").exists():
        raise UserError(
            f"{key}: {given} is neither a run folder (config.yaml, checkpoints/) nor a Hugging Face folder (config.json)"
        )
    try:
        if not folder.is_run:
            source = stored_model(os.fspath(given), head, key, head)
            hf.check_weights(source.folder, source.stored)
            return source
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if folder.config.head != head:
        names = {"lm_head": "a language model", "score": "a reward model"}
        name = name_of(folder.config.objective) if folder.config.objective else None
        raise UserError(
            f"{key}: {given} is the run of {names[folder.config.head]} (objective.name is {name}), and {names[head]} is needed"
        )
    if not folder.steps:
        raise UserError(f"{key}: {given} is a run without a checkpoint yet")
    return trained_model(folder, key=key)


def _chosen(given: str | os.PathLike) -> RunFolder:
    """The folder that stands for a run, by the first process's disk."""
    return RunFolder(Path(from_first(f"the checkpoints of {given}", lambda: str(RunFolder(Path(given)).chosen.path))))


def trained_model(folder: RunFolder, step: int | None = None, key: str = "run.dir") -> TrainedModel:
    """The model of a run's checkpoint, the newest one where `step` is None."""
    common = {"shape": folder.shape, "tokenizer_at": str(folder.tokenizer), "key": key, "hf_config": folder.hf_config}
    under = None if folder.config.lora is None else _without_adapter(folder.config)
    return TrainedModel(**common, run=folder, step=step, under=under)


def current_model(config: Config) -> ModelSource:
    """The newest checkpoint of `run.dir` where there is one, otherwise the starting model.

    Raises:
      UserError: the run trained a model with another head than this config's objective needs.
    """
    folder = _chosen(config.run.dir) if config.run.dir else None
    if folder is None or not from_first("the newest checkpoint", lambda: folder.is_run and bool(folder.steps)):
        return starting_model(config)
    source = model_at(folder.path, config.head, "run.dir")
    own = folder.config
    if config.lora is not None and own.lora is not None and own.lora.path is None and config.lora != own.lora:
        # A later round goes on with the adapter of the one before, by its path.
        raise UserError(f"lora: {config.lora} is not what {folder.path} was trained with ({own.lora}); leave it out")
    if config.model.quantize not in (None, own.model.quantize):
        raise UserError(
            f"model.quantize: {config.model.quantize} is not what {folder.path} was trained with "
            f"({own.model.quantize}); leave it out"
        )
    return source


def reference_model(config: Config, start: ModelSource) -> ModelSource:
    """The reference policy: `reference.path`, or `reference.adapter` on the starting model; by default the starting model.

    Where an adapter is trained, the reference has one of the same shape, so that both are one program: one that adds zero,
    where the reference has none, or has one of another shape, which is then merged into its weights.

    Raises:
      UserError: another shape than the starting model's, an adapter without `lora`, or few bits of the checkpoint of a run.
    """
    found, kind = _reference_model(config, start), config.reference.quantize
    if kind is None:
        return found
    if not isinstance(found, StoredModel | FreshModel):
        raise UserError(
            f"reference.quantize: {kind}: {found.describe()} is a run; weights in few bits are read from Hugging Face's "
            "format: export it (align-jax export), and give that folder"
        )
    return dataclasses.replace(found, shape=dataclasses.replace(found.shape, quantize=kind))


def _reference_model(config: Config, start: ModelSource) -> ModelSource:
    """The reference in as many bits as the starting model."""
    if config.reference.adapter is not None:
        if not isinstance(start, AdaptedModel):
            raise UserError(f"reference.adapter: {config.reference.adapter} is used with `lora` alone; see reference.path")
        return _of_same_program(_adapted(start.under, config.reference.adapter, config, "reference.adapter"), start)
    if config.reference.path is None:
        return start
    source = model_at(config.reference.path, start.shape.head, "reference.path")
    return as_program(source, start)


def as_program(source: ModelSource, start: ModelSource) -> ModelSource:
    """A model whose weights the program of the starting model takes: with the same adapter and as many bits, if any.

    An adapter that the starting model lacks, or has in another shape, is merged into the weights.

    Raises:
      UserError: another shape beneath.
    """
    if isinstance(source, StoredModel):
        source = dataclasses.replace(source, shape=dataclasses.replace(source.shape, quantize=start.shape.quantize))
    check_same_shape(source, start)
    return _of_same_program(source, start)


def _of_same_program(source: ModelSource, start: ModelSource) -> ModelSource:
    if _program(source.shape) == _program(start.shape):
        return source
    if source.shape.lora is not None and source.shape.quantize is not None:
        raise UserError(
            f"{source.key}: {source.describe()} has an adapter of another shape than the trained one, which would have to "
            f"be merged into weights of model.quantize: {source.shape.quantize}; give one of the same shape, or leave that out"
        )
    common = {name: getattr(source, name) for name in ("tokenizer_at", "key", "chat_template", "hf_config")}
    if start.shape.lora is None:
        return MergedModel(shape=source.shape.plain, under=source, **common) if source.shape.lora is not None else source
    return AdaptedModel(shape=start.shape, under=source, **common)


def for_length(source: ModelSource, longest: int) -> ModelSource:
    """The model for texts of up to so many tokens: where its rotary frequencies depend on that, they are fixed once for all."""
    scaling = source.shape.rope_scaling
    if scaling is None or not scaling.depends_on_length:
        return source
    length = max(longest, scaling.original_length)
    return dataclasses.replace(source, shape=dataclasses.replace(source.shape, rope_length=length))


def _program(shape: ModelConfig) -> ModelConfig:
    """The shape without what changes no program of given weights."""
    lora = shape.lora and dataclasses.replace(shape.lora, init="default", dropout=0.0)
    return dataclasses.replace(shape, lora=lora, rope_length=None)


def check_same_shape(source: ModelSource, start: ModelSource) -> None:
    """UserError where a model cannot take the place of the starting model."""
    alike = lambda shape: dataclasses.replace(shape.plain, rope_length=None)  # noqa: E731
    if alike(source.shape) != alike(start.shape):
        differs = other_shape(alike(source.shape), alike(start.shape))
        raise UserError(f"{source.key}: {source.describe()} has another shape than the starting model: {differs} there")


def other_shape(shape: ModelConfig, other: ModelConfig) -> str:
    """The first field of a shape that another one has otherwise: `layers 4, and 8`."""
    fields = ((field.name, getattr(shape, field.name), getattr(other, field.name)) for field in dataclasses.fields(shape))
    name, own, its = next((name, own, its) for name, own, its in fields if own != its)
    return f"{name} {own}, and {its}"
