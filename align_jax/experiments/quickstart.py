"""`align-jax experiment quickstart`: data, a base model, GDPO, export; nothing to download, a few minutes on a laptop."""

from __future__ import annotations

import time
from pathlib import Path

from align_jax.config import Config, load_config, parse_overrides
from align_jax.errors import UserError
from align_jax.experiments import opinions
from align_jax.parallel.stop import StopSignal
from align_jax.recipes.export import export
from align_jax.recipes.folder import remove_run
from align_jax.recipes.train import train
from align_jax.training.logs import read_metrics

BASE, MAIN = Path("configs/quickstart-base.yaml"), Path("configs/quickstart.yaml")
OUT = Path("runs/quickstart")
ROWS = {"base": 8000, "train": 4000, "eval": 400}


def main(argv: list[str]) -> int:
    """Trains a base model on all beliefs alike, then GDPO on a group's; prints the distance before and after."""
    began = time.perf_counter()
    for config in (BASE, MAIN):
        if not config.exists():
            raise UserError(f"{config} is not here; run this from the root of the repository")
    config = load_config(MAIN, parse_overrides(argv), require=("data.eval",))
    opinions.write_tokenizer(OUT / "tokenizer")
    for seed, (name, count) in enumerate(ROWS.items()):
        opinions.write_rows(OUT / f"{name}.jsonl", opinions.rows(count, seed, uniform=name == "base"))

    base = load_config(BASE)
    if not _train(base):
        return 0
    export(Path(base.run.dir), OUT / "base-model")

    if not _train(config):
        return 0
    model = OUT / "model"
    export(Path(config.run.dir), model)

    measured = [m for m in read_metrics(Path(config.run.dir) / "metrics.jsonl") if "eval/beliefs/js_distance" in m]
    before, after = measured[0]["eval/beliefs/js_distance"], measured[-1]["eval/beliefs/js_distance"]
    print(f"Jensen-Shannon distance to the group's beliefs: {before:.3f} before, {after:.3f} after GDPO")
    print(f"exported model: {model} ({time.perf_counter() - began:.0f} s in all)")
    return 0


def _train(config: Config) -> bool:
    """Trains anew; False when SIGTERM ended it."""
    folder = Path(config.run.dir)
    if folder.exists() and not (folder / "config.yaml").exists():
        raise UserError(f"run.dir: {folder} is not a run folder, and the quick start would replace it; choose another")
    remove_run(folder)
    with StopSignal() as stop:
        return train(config, stop) and not stop.requested()
