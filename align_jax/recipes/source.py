"""Where weights come from: a fresh model, a Hugging Face folder or hub id, or the checkpoint of a run.

    source.shape, source.tokenizer, source.weights(mesh, "float32"), source.fingerprint()

Policy, reference, reward model, the models of an evaluation and what is exported are all one of these;
`align_jax.recipes.models` says which one a config means.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from align_jax import hf
from align_jax.errors import UserError
from align_jax.files import fingerprint_files, glimpse_files
from align_jax.models import ModelConfig, init_weights, weight_shardings
from align_jax.models.adapting import adapter_of, fresh_adapter, merged, trained_paths, with_adapter
from align_jax.recipes.fits import check_weights_fit
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.tokenizer import load_tokenizer, read_template
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.manifest import hash_of_checkpoint
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

    def content(self) -> Any:
        """What its files hold, which may become another under the same name: a JSON value; None where it has no files.

        Unlike `fingerprint` it is the same in another folder.
        """
        return self.fingerprint()

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

    def content(self) -> None:
        return None

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
            whole = _in_float32(self.shape, weights)
            return with_adapter(with_adapter(weights, whole), hf.load_adapter(self.folder, self.shape, where)), None
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

    def content(self) -> Any:
        under = self.under.content()
        return under if self.folder is None else [under, fingerprint_files(hf.adapter_files(self.folder))]

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

    def content(self) -> list[Any]:
        step = self.run.steps[-1] if self.step is None else self.step
        own = [step, hash_of_checkpoint(self.run.path / "checkpoints" / str(step))]
        return own if self.under is None else [self.under.content(), own]

    def describe(self) -> str:
        return str(self.run.path)


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

    def content(self) -> Any:
        return ["merged", self.under.content()]

    def describe(self) -> str:
        return self.under.describe()


def stored_model(given: str, head: str, key: str, read_as: str | None) -> StoredModel:
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
