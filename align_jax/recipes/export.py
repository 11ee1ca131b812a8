"""Export: a run's checkpoint as a folder in Hugging Face format."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from align_jax import hf
from align_jax.errors import UserError
from align_jax.models import Decoder, ModelConfig, weight_shardings
from align_jax.models.adapting import merged, trained_paths, with_adapter
from align_jax.parallel.processes import on_first
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.models import trained_model
from align_jax.recipes.say import say, watching
from align_jax.recipes.source import TrainedModel
from align_jax.training.state import split


def export(
    run_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    step: int | Literal["best"] | None = None,
    dtype: str | None = None,
    *,
    overwrite: bool = False,
    merge: bool = False,
) -> int:
    """Exports a checkpoint of a run with its tokenizer; transformers loads the folder, and PEFT that of an adapter.

    Says how far the logits of what was written are from those of what was trained.

    Args:
      run_dir: of the run; or what `train` returned. out_dir: a folder that is not there yet, or is empty.
      step: which checkpoint; None is the newest (of the round that `rounds.best` chooses), `best` the one with the best
        `checkpoint.best_metric`.
      dtype: of the written weights; None is that of the trained ones.
      overwrite: `out_dir` may hold an earlier export, which is replaced.
      merge: of a run that trained an adapter, the whole model with it; without, the adapter alone.

    Returns:
      The step of the checkpoint.

    Raises:
      UserError: not a run folder, no such checkpoint, or `out_dir` holds something else.
    """
    if "://" in str(out_dir):
        raise UserError(f"export folder {out_dir} is no folder of this machine; export to one, and copy it there")
    folder = RunFolder(Path(getattr(run_dir, "folder", run_dir)))
    if not folder.is_run:
        raise UserError(f"{folder.path} is not a run folder: it has no config.yaml")
    on_first(lambda: hf.clear_left(Path(os.path.expanduser(out_dir))), f"looking at {out_dir}")
    if not overwrite and any(Path(os.path.expanduser(out_dir)).glob("*.safetensors")):
        raise UserError(
            f"export folder {out_dir} holds a model already; give another folder, or replace it with --overwrite "
            "(overwrite=True in Python)"
        )
    if step is None:
        chosen = folder.chosen
        if folder.config.rounds is not None and chosen.path != folder.path:
            say(f"the model is that of round {chosen.path.name} (rounds.best: {folder.config.rounds.best})")
        return export_model(trained_model(chosen), out_dir, dtype, merge=merge)
    newest = folder.newest
    if isinstance(step, str) and step != "best":
        raise UserError(f"--step: {step!r} is neither a number nor best")
    source = trained_model(newest, newest.best_step() if step == "best" else step)
    return export_model(source, out_dir, dtype, merge=merge)


def export_model(
    source: TrainedModel,
    out_dir: str | os.PathLike,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    *,
    merge: bool = False,
) -> int:
    """Exports the model of a checkpoint, see `export`; returns its step.

    Args:
      merge: see `export`.
      mesh: where the weights are held on the way; None: in host memory. With several processes all must call, with a mesh.
    """
    if merge and source.under is None:
        raise UserError(f"--merge: {source.run.path} trained all weights, and has no adapter to merge; leave it out")
    model = source.run.config.model
    _ = source.tokenizer  # a damaged one is named now, and not copied
    with watching(f"loading the weights of {source.describe()}"):
        weights, step = source.load(mesh, model.param_dtype)
    trained = Decoder(source.shape, weights, dtype="float32")
    options = {"tokenizer": source.run.tokenizer, "dtype": dtype}
    with watching(f"writing {out_dir}"):
        if source.under is not None and not merge:
            _write_adapter(source, weights, out_dir, options)
        else:
            config, whole = _whole(source, weights, mesh) if merge else (source.shape, weights)
            options |= {"base_config": source.hf_config, "generation_config": source.generation_config}
            options["dtype"] = dtype or (model.param_dtype if merge else None)
            hf.save_model(Decoder(config, whole, dtype=model.dtype), out_dir, **options)
    # One accelerator may be smaller than the model.
    host = jax.default_device(jax.local_devices(backend="cpu")[0]) if mesh is None else contextlib.nullcontext()
    with watching(f"reading {out_dir} again"), host:
        if source.under is not None and not merge:
            under = split(weights, lambda path: path not in trained_paths(source.shape))[0]
            # What is read may have another rank: that of a Phi is the sum of its parts'.
            plain = dataclasses.replace(source.shape, lora=None)
            shape = dataclasses.replace(plain, lora=hf.read_adapter(out_dir, plain))
            own = hf.load_adapter(out_dir, shape, mesh and weight_shardings(shape, mesh))
            found = Decoder(shape, with_adapter(under, own), dtype="float32")
        else:
            found = hf.load_model(out_dir, mesh, "float32", dtype or model.param_dtype, source.shape.head)
        differ = logit_difference(trained, found)
    say(f"logits differ by at most {differ:.2g} from those of what was trained (64 random tokens, in float32)")
    return step


def _write_adapter(source: TrainedModel, weights: dict, out_dir: str | os.PathLike, options: dict[str, Any]) -> None:
    """Writes the adapter of a run."""
    at = source.run.config.model.at
    if at is None:
        raise UserError("a fresh model (model.config) has no name that an adapter could give as its base; add --merge")
    hf.save_adapter(Decoder(source.shape, weights), out_dir, at, **options)
    say(f"{out_dir} holds an adapter for {at}; with --merge it is the whole model")


def _whole(source: TrainedModel, weights: dict, mesh: Mesh | None) -> tuple[ModelConfig, dict]:
    """The model with the adapter merged into weights that were not rounded before; of few bits, into what their codes say."""
    if source.shape.quantize is not None:
        say(
            f"merged into the weights as {source.shape.quantize} has them, over which the adapter was trained; "
            f"align_jax.load_model({source.run.config.model.at!r}, adapter=...) takes them as they were"
        )
        return merged(source.shape, weights)
    trained = trained_paths(source.shape)
    own = {path: value for path, value in flatten_dict(weights).items() if path in trained}
    exact, _ = source.under.load(mesh, "float32")
    return merged(source.shape, with_adapter(exact, unflatten_dict(own)))


def logit_difference(one: Decoder, other: Decoder) -> float:
    """The largest difference between what two models say of the same 64 random tokens: logits, or a reward model's scores."""
    tokens = jax.random.randint(jax.random.key(0), (2, 32), 0, one.config.vocab_size)

    def says(model: Decoder) -> jax.Array:
        hidden = model.hidden(tokens)
        return model.scores(hidden) if model.config.head == "score" else model.logits(hidden)

    return float(jnp.max(jnp.abs(says(one) - says(other))))
