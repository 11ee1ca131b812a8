"""`align-jax export RUN_DIR OUT_DIR [--step N] [--dtype bfloat16]`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from jax.sharding import Mesh

from align_jax import hf
from align_jax.config import Config, load_config
from align_jax.errors import UserError
from align_jax.models import Decoder, ModelConfig, weight_shardings
from align_jax.recipes.folder import GENERATION_CONFIG, newest_run
from align_jax.recipes.setup import with_head
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.saved import restore_weights


def main(argv: list[str]) -> int:
    """Writes a run's checkpoint in Hugging Face format."""
    parser = argparse.ArgumentParser(prog="align-jax export")
    parser.add_argument("run_dir")
    parser.add_argument("out_dir")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest by default")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; that of the trained weights by default")
    options = parser.parse_args(argv)
    step = export(Path(options.run_dir), Path(options.out_dir), options.step, options.dtype)
    print(f"align-jax: exported step {step} of {options.run_dir} to {options.out_dir}", file=sys.stderr)
    return 0


def export(
    run_dir: Path, out_dir: Path, step: int | None = None, dtype: str | None = None, mesh: Mesh | None = None
) -> int:
    """Exports a checkpoint with its tokenizer; returns its step.

    Args:
      mesh: where the weights are held on the way; None: in host memory. With several processes all must call, with a mesh.

    Raises:
      UserError: not a run folder, no such checkpoint, or `out_dir` holds something else.
    """
    if not (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir} is not a run folder: it has no config.yaml")
    run_dir = newest_run(run_dir)
    config = load_config(run_dir / "config.yaml")
    model_config, base = trained_config(run_dir, config)
    where = None if mesh is None else weight_shardings(model_config, mesh)
    params, step = trained_weights(run_dir, config, model_config, step, where)
    model = Decoder(model_config, params, dtype=config.model.dtype)
    stored = run_dir / GENERATION_CONFIG
    generation_config = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else None
    hf.save_model(
        model,
        out_dir,
        tokenizer=run_dir / "tokenizer",
        dtype=dtype,
        base_config=base,
        generation_config=generation_config,
    )
    return step


def trained_config(run_dir: Path, config: Config) -> tuple[ModelConfig, dict | None]:
    """The shape of a run's model, and the `config.json` that it came from (None for a fresh model)."""
    stored = run_dir / "model_config.json"
    if stored.exists():
        base = json.loads(stored.read_text(encoding="utf-8"))
        return with_head(hf.model_config_from_hf(base, str(stored), None), config), base
    return with_head(config.model.fresh_config(), config), None


def trained_weights(run_dir: Path, config: Config, model_config: ModelConfig, step: int | None, shardings=None):
    """The weights of a run's checkpoint (the newest by default) and its step; on the host unless shardings are given."""
    with Checkpointer(run_dir / "checkpoints", read_only=True) as checkpoints:
        return restore_weights(checkpoints, model_config, step, shardings, config.model.param_dtype)
