"""`align-jax evaluate CONFIG.yaml [--section.key value ...]`: metrics on `data.eval`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax

from align_jax.cli import assemble
from align_jax.cli.export import trained_weights
from align_jax.cli.run_folder import has_checkpoints, newest_run, say, write_whole
from align_jax.cli.train import in_training_evaluation
from align_jax.config import load_config, parse_overrides
from align_jax.data import Encoder
from align_jax.errors import UserError
from align_jax.models import weight_shardings


def main(argv: list[str]) -> int:
    """Evaluates the newest checkpoint of `run.dir`, or the starting model where there is none.

    Implicit rewards are relative to the reference (`reference.path`, by default the starting model). Prints one metric a
    line, and writes them to `run.dir/evaluation.json`.
    """
    if not argv or argv[0].startswith("--"):
        raise UserError("give a config: align-jax evaluate CONFIG.yaml [--section.key value ...]")
    config = load_config(argv[0], parse_overrides(argv[1:]), require=("run.dir", "model", "data", "data.eval"))
    folder = Path(config.run.dir)
    mesh, start = assemble.mesh_of(config), assemble.start_of(config)
    encoder = Encoder(assemble.tokenizer_of(config), config.data, start.config.vocab_size)
    scorer = assemble.scorer_of(start, config)
    folder.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(mesh):
        measure = in_training_evaluation(config, start, encoder, scorer, mesh, folder)
        trained = newest_run(folder)
        if has_checkpoints(trained):
            where = weight_shardings(start.config, mesh)
            params, step = trained_weights(trained, config, start.config, None, where)
            say(f"evaluating the checkpoint of step {step} in {trained}")
        else:
            params, step = assemble.weights_of(start, config, mesh), 0
            say(f"{folder} has no checkpoint: evaluating the starting model")
        metrics = {name.removeprefix("eval/"): value for name, value in measure(params).items()}
    if jax.process_index() == 0:
        write_whole(folder / "evaluation.json", json.dumps({"step": step, **metrics}, indent=2))
        width = max(map(len, metrics))
        sys.stdout.writelines(f"{name:<{width}}  {value:.6g}\n" for name, value in metrics.items())
    return 0
