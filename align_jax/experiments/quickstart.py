"""`align-jax experiment quickstart`: data, a base model, GDPO, export; nothing to download, a few minutes on a laptop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from align_jax.config import Config, load_config, parse_overrides
from align_jax.config.packaged import packaged_config
from align_jax.errors import UserError
from align_jax.experiments import opinions
from align_jax.recipes.export import export
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.say import part_of_a_job, say
from align_jax.recipes.train import Run, train

OUT = Path("runs/quickstart")
ROWS = {"base": 8000, "train": 4000, "eval": 400}


def main(argv: Sequence[str]) -> int:
    """Trains a base model on all beliefs alike, then GDPO on a group's; prints the distance before and after."""
    began = time.perf_counter()
    config = load_config(packaged_config("quickstart"), parse_overrides(argv), require=("data.eval",))
    opinions.write_tokenizer(OUT / "tokenizer")
    for seed, (name, count) in enumerate(ROWS.items()):
        opinions.write_rows(OUT / f"{name}.jsonl", opinions.rows(count, seed, uniform=name == "base"))

    say("quick start: a base model is trained first, then GDPO gives it a group's beliefs, and both are exported")
    with part_of_a_job():
        base = _train(load_config(packaged_config("quickstart-base")))
    if not base.finished:
        return 0
    export(base.folder, OUT / "base-model")

    run = _train(config)
    if not run.finished:
        return 0
    export(run.folder, OUT / "model")

    measured = [line["eval/beliefs/js_distance"] for line in run.history if "eval/beliefs/js_distance" in line]
    print(f"Jensen-Shannon distance to the group's beliefs: {measured[0]:.3f} before, {measured[-1]:.3f} after GDPO")
    print(f"exported model: {OUT / 'model'} ({time.perf_counter() - began:.0f} s in all)")
    return 0


def _train(config: Config) -> Run:
    """Trains anew."""
    folder = RunFolder(Path(config.run.dir))
    if folder.path.exists() and not folder.is_run:
        raise UserError(f"run.dir: {folder.path} is not a run folder, and the quick start would replace it; choose another")
    folder.remove()
    return train(config)
