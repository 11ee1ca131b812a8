"""Export: a run's checkpoint as a folder in Hugging Face format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from jax.sharding import Mesh

from align_jax import hf
from align_jax.errors import UserError
from align_jax.models import Decoder
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.say import say, watching
from align_jax.recipes.source import TrainedModel, trained_model


def export(
    run_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    step: int | Literal["best"] | None = None,
    dtype: str | None = None,
    *,
    overwrite: bool = False,
) -> int:
    """Exports a checkpoint of a run with its tokenizer; transformers loads the folder.

    Args:
      run_dir: of the run; or what `train` returned. out_dir: a folder that is not there yet, or is empty.
      step: which checkpoint; None is the newest (of the round that `rounds.best` chooses), `best` the one with the best
        `checkpoint.best_metric`.
      dtype: of the written weights; None is that of the trained ones.
      overwrite: `out_dir` may hold an earlier export, which is replaced.

    Returns:
      The step of the checkpoint.

    Raises:
      UserError: not a run folder, no such checkpoint, or `out_dir` holds something else.
    """
    folder = RunFolder(Path(getattr(run_dir, "folder", run_dir)))
    if not folder.is_run:
        raise UserError(f"{folder.path} is not a run folder: it has no config.yaml")
    if not overwrite and any(Path(os.path.expanduser(out_dir)).glob("*.safetensors")):
        raise UserError(
            f"export folder {out_dir} holds a model already; give another folder, or replace it with --overwrite "
            "(overwrite=True in Python)"
        )
    if step is None:
        chosen = folder.chosen
        if folder.config.rounds is not None and chosen.path != folder.path:
            say(f"the model is that of round {chosen.path.name} (rounds.best: {folder.config.rounds.best})")
        return export_model(trained_model(chosen), out_dir, dtype)
    newest = folder.newest
    if isinstance(step, str) and step != "best":
        raise UserError(f"--step: {step!r} is neither a number nor best")
    return export_model(trained_model(newest, newest.best_step() if step == "best" else step), out_dir, dtype)


def export_model(source: TrainedModel, out_dir: str | os.PathLike, dtype: str | None = None, mesh: Mesh | None = None) -> int:
    """Exports the model of a checkpoint, see `export`; returns its step.

    Args:
      mesh: where the weights are held on the way; None: in host memory. With several processes all must call, with a mesh.
    """
    model = source.run.config.model
    with watching(f"loading the weights of {source.describe()}"):
        weights, step = source.load(mesh, model.param_dtype)
    with watching(f"writing {out_dir}"):
        hf.save_model(
            Decoder(source.shape, weights, dtype=model.dtype),
            out_dir,
            tokenizer=source.run.tokenizer,
            dtype=dtype,
            base_config=source.hf_config,
            generation_config=source.generation_config,
        )
    return step
