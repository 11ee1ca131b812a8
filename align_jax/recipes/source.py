"""Where weights come from: a fresh model, a Hugging Face folder or hub id, or the checkpoint of a run.

    source = starting_model(config)               # the `model` section
    source = model_at("runs/mpo", "lm_head")      # a run folder, a Hugging Face folder or a hub id
    source.shape, source.tokenizer, source.weights(mesh, "float32"), source.fingerprint()

Policy, reference, reward model, the models of an evaluation and what is exported are all one of these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jinja2
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from align_jax import hf
from align_jax.config import Config
from align_jax.data.guarded import plain_jinja
from align_jax.errors import UserError
from align_jax.files import fingerprint_files, glimpse_files
from align_jax.models import ModelConfig, init_weights, weight_shardings
from align_jax.models.adapting import adapter_of, fresh_adapter, merged, trained_paths, with_adapter
from align_jax.network import retried
from align_jax.objectives import name_of
from align_jax.parallel.processes import from_first
from align_jax.recipes.fits import check_weights_fit
from align_jax.recipes.folder import RunFolder
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.saved import restore_weights
from align_jax.training.state import split

_HEADS = ("lm_head", "score")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that was found, before its weights are loaded.

    Attributes:
      shape: of the model, with the head that is wanted.
      tokenizer_at: folder or hub id of its tokenizer, or None where it has none.
      key: what the config calls the model, for errors.
      chat_template: file of the template that takes the place of the tokenizer's, or None.
      hf_config: the `config.json` that it came from, whose other fields an export keeps; None for a fresh model.
    """

    shape: ModelConfig
    tokenizer_at: str | None
    key: str
    chat_template: str | None = None
    hf_config: dict[str, Any] | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def generation_config(self) -> dict[str, Any] | None:
        """The `generation_config.json` that it came with, if any."""
        return None

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, of transformers.

        Raises:
          UserError: none was named, or what was named is none.
        """
        if self.tokenizer_at is None:
            raise UserError("model.tokenizer: a fresh model (model.config) needs a tokenizer; give its folder or hub id")
        tokenizer = load_tokenizer(self.tokenizer_at, "model.tokenizer" if self.key == "model" else self.key)
        if self.chat_template is not None:
            tokenizer.chat_template = read_template(self.chat_template)
        return tokenizer

    def load(self, mesh: Mesh | None, dtype: str) -> tuple[dict, int | None]:
        """The weights, and the step of a checkpoint.

        Args:
          mesh: where they go; None: host memory, since one accelerator may be smaller than the model.
          dtype: what they are kept in.

        Returns:
          Nested dict of arrays, see `align_jax.models.weight_shapes`.
        """
        raise TypeError(f"{type(self).__name__} does not say how its weights are loaded")

    def weights(self, mesh: Mesh | None, dtype: str) -> dict:
        """The weights alone, see `load`."""
        return self.load(mesh, dtype)[0]

    def fingerprint(self) -> Any:
        """What tells its weights from others: a JSON value that a new start gives again."""
        raise TypeError(f"{type(self).__name__} does not say what tells its weights from others")

    def glimpse(self) -> Any:
        """As `fingerprint`, of pieces of its files, which takes no time; None where there are none."""
        return None

    def describe(self) -> str:
        """The model in a few words."""
        raise TypeError(f"{type(self).__name__} does not say what it is")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreshModel(ModelSource):
    """A model of this shape with weights drawn from a seed."""

    seed: int

    def load(self, mesh: Mesh | None, dtype: str) -> tuple[dict, None]:
        check_weights_fit(self.shape, mesh, dtype, "model.config")
        return _drawn(self, mesh, dtype)(jax.random.key(self.seed)), None

    def fingerprint(self) -> str:
        return repr((self.shape, self.seed))

    def describe(self) -> str:
        return "fresh model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredModel(ModelSource):
    """A model in Hugging Face format.

    Attributes:
      folder: where it lies. given: the folder or hub id as the user wrote it.
      stored: its shape in that folder, whose head may be another one than `shape` has: that head is then drawn from `seed`.
    """

    folder: Path
    given: str
    stored: ModelConfig
    seed: int = 0

    @property
    def generation_config(self) -> dict[str, Any] | None:
        return hf.load_generation_config(self.folder)

    def load(self, mesh: Mesh | None, dtype: str) -> tuple[dict, None]:
        check_weights_fit(self.shape, mesh, dtype, self.key)
        fresh = () if self.stored.head == self.shape.head else _HEADS
        stored = dataclasses.replace(self.stored, quantize=self.shape.quantize)
        where = None if mesh is None else weight_shardings(stored, mesh)
        # What few bits say is made by the kind of device that trained over it: another may divide otherwise in the last digit.
        host = jax.default_device(jax.local_devices(backend="cpu")[0]) if mesh is None and stored.quantize is None else None
        with host or contextlib.nullcontext():
            weights = hf.load_weights(self.folder, stored, where, dtype, skip=fresh)
        if fresh:
            weights[self.shape.head] = _drawn(self, mesh, dtype, self.shape.head)(jax.random.key(self.seed))
        return weights, None

    def fingerprint(self) -> Any:
        files = fingerprint_files(self.folder.glob("*.safetensors"))
        return files if self.shape.quantize is None else [files, self.shape.quantize]

    def glimpse(self) -> str:
        return glimpse_files(self.folder.glob("*.safetensors"))

    def describe(self) -> str:
        return self.given


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptedModel(ModelSource):
    """A model with an adapter on top: a fresh one, which changes nothing yet, or one in PEFT's format.

    Attributes:
      under: the model without it; an adapter that it has is merged into its weights.
      folder: of the adapter; None: a fresh one, drawn from `seed`.
    """

    under: ModelSource
    folder: str | None = None
    seed: int = 0

    @property
    def generation_config(self) -> dict[str, Any] | None:
        return self.under.generation_config

    def load(self, mesh: Mesh | None, dtype: str) -> tuple[dict, None]:
        weights = merged(self.under.shape, self.under.load(mesh, dtype)[0])[1]
        where = None if mesh is None else weight_shardings(self.shape, mesh)
        if self.folder is not None:
            return with_adapter(weights, hf.load_adapter(self.folder, self.shape, where)), None
        own = None if where is None else adapter_of(self.shape, where)
        start = jax.jit(partial(fresh_adapter, self.shape), out_shardings=own)(weights, jax.random.key(self.seed))
        return with_adapter(with_adapter(weights, start), _in_float32(self.shape, weights)), None

    def fingerprint(self) -> Any:
        under = self.under.fingerprint()
        if self.folder is None:
            return under
        return [under, fingerprint_files(hf.adapter_files(self.folder))]

    def glimpse(self) -> list[Any]:
        return [self.under.glimpse(), None if self.folder is None else fingerprint_files(hf.adapter_files(self.folder))]

    def describe(self) -> str:
        return self.under.describe() + ("" if self.folder is None else f" with {self.folder}")


def _in_float32(shape: ModelConfig, weights: dict) -> dict:
    """The weights that are trained whole beside an adapter, in float32."""
    flat = flatten_dict(weights)
    return unflatten_dict({path: flat[path].astype("float32") for path in flat if ".".join(path) in shape.lora.saved})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedModel(ModelSource):
    """The model of a run's checkpoint: the newest one, or that of a step.

    Attributes:
      under: the model that the run trained an adapter for, which its checkpoints do not hold; None: it trained all weights.
    """

    run: RunFolder
    step: int | None = None
    under: ModelSource | None = None

    @property
    def generation_config(self) -> dict[str, Any] | None:
        return self.run.generation_config

    def load(self, mesh: Mesh | None, dtype: str) -> tuple[dict, int]:
        where = None if mesh is None else weight_shardings(self.shape, mesh)
        frozen = None if self.under is None else self._frozen(mesh)
        with Checkpointer(self.run.path / "checkpoints", read_only=True) as checkpoints:
            return restore_weights(checkpoints, self.shape, self.step, where, dtype, frozen)

    def _frozen(self, mesh: Mesh | None) -> dict:
        """What the run did not train, in the type in which it had it."""
        weights, _ = self.under.load(mesh, self.run.config.model.param_dtype)
        return split(weights, lambda path: path not in trained_paths(self.shape))[0]

    def fingerprint(self) -> list[Any]:
        return self.run.fingerprint()

    def describe(self) -> str:
        return str(self.run.path)


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
        stored = _stored(model.at, head, "model", None if head == "score" else head)
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
            adapter = dataclasses.replace(hf.read_adapter(folder, under.shape), dropout=config.lora.dropout)
    except UserError as error:
        raise error if folder is None else UserError(f"{key}: {error}") from error
    common = {name: getattr(under, name) for name in ("tokenizer_at", "key", "chat_template", "hf_config")}
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
            source = _stored(os.fspath(given), head, key, head)
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
    return model_at(folder.path, config.head, "run.dir")


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergedModel(ModelSource):
    """A model whose adapter is merged into its weights."""

    under: ModelSource

    @property
    def generation_config(self) -> dict[str, Any] | None:
        return self.under.generation_config

    def load(self, mesh: Mesh | None, dtype: str) -> tuple[dict, int | None]:
        weights, step = self.under.load(mesh, dtype)
        return merged(self.under.shape, weights)[1], step

    def fingerprint(self) -> Any:
        return ["merged", self.under.fingerprint()]

    def describe(self) -> str:
        return self.under.describe()


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
        raise UserError(
            f"{source.key}: {source.describe()} has another shape than the starting model: {source.shape} != {start.shape}"
        )


def load_tokenizer(where: str | os.PathLike, key: str) -> Any:
    """The tokenizer of a folder or hub id (with `@REVISION`, of that); `key` is what the config calls it, for errors."""
    try:
        name, revision = hf.split_revision(os.path.expanduser(where))
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    try:
        return retried(lambda: hf.read_tokenizer(name, revision), str(where))
    except UserError as error:
        raise UserError(f"{key}: no tokenizer can be loaded from {where}: {error}") from error


def read_template(file: str) -> str:
    """The Jinja template of `model.chat_template`.

    Raises:
      UserError: no such file, or no Jinja.
    """
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain_jinja(text))
    except RecursionError as error:
        raise UserError(f"model.chat_template: {file}: its parts stand too deep in one another") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.chat_template: cannot read {file}: {error}") from error
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"model.chat_template: {file}:{error.lineno}: not a Jinja template: {error.message}") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"model.chat_template: {file}: not a Jinja template: {str(error)[:80]}") from error
    return text


def _stored(given: str, head: str, key: str, read_as: str | None) -> StoredModel:
    """A model in Hugging Face format, whose config is read once; `read_as` is the head that it must have there."""
    folder = hf.resolve_folder(given)
    stored, hf_config = hf.load_config(folder, read_as)
    return StoredModel(
        shape=dataclasses.replace(stored, head=head),
        tokenizer_at=str(folder),
        key=key,
        hf_config=hf_config,
        folder=folder,
        given=given,
        stored=stored,
    )


def _drawn(source: ModelSource, mesh: Mesh | None, dtype: str, name: str | None = None):
    """key -> fresh weights, or the one of them with this name alone (the compiler leaves the others out)."""
    where = None if mesh is None else weight_shardings(source.shape, mesh)
    make = partial(init_weights, source.shape, param_dtype=dtype)
    if name is None:
        return jax.jit(make, out_shardings=where)
    return jax.jit(lambda key: make(key)[name], out_shardings=None if where is None else where[name])
