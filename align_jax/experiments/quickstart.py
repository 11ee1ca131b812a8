"""The quick start: data, a base model, GDPO, export; nothing to download, a few minutes on a laptop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from align_jax.config import Config, load_config, parse_overrides
from align_jax.config.packaged import packaged_config
from align_jax.config.source import Override
from align_jax.errors import UserError
from align_jax.experiments import beliefs_picture, opinions
from align_jax.recipes.export import export
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.say import part_of_a_job, say
from align_jax.recipes.train import Run, train

OUT = Path("runs/quickstart")
PICTURE = "beliefs.png"
ROWS = {"base": 8000, "train": 4000, "eval": 400}


def main(argv: Sequence[str]) -> int:
    """Trains a base model on all beliefs alike, then GDPO on a group's; prints the distance before and after,
    and draws both beside the group's beliefs.

    All of it is kept below runs/quickstart, or below the folder that --run.dir names: the data, base/ and base-model/ (the base
    model's run and its export), gdpo/ and model/ (the run of GDPO and its export), and beliefs.png.
    """
    began = time.perf_counter()
    out, options = _folder(parse_overrides(argv))
    config = load_config(packaged_config("quickstart"), [*_stage(out), *options], require=("data.eval",))
    opinions.write_tokenizer(out / "tokenizer")
    for seed, (name, count) in enumerate(ROWS.items()):
        opinions.write_rows(out / f"{name}.jsonl", opinions.rows(count, seed, uniform=name == "base"))

    say("quick start: a base model is trained first, then GDPO gives it a group's beliefs, and both are exported")
    with part_of_a_job():
        base = _train(load_config(packaged_config("quickstart-base"), _base_stage(out)))
    if not base.finished:
        return 0
    export(base.folder, out / "base-model", overwrite=True)

    run = _train(config)
    if not run.finished:
        return 0
    export(run.folder, out / "model", overwrite=True)

    measured = [line["eval/beliefs/js_distance"] for line in run.history if "eval/beliefs/js_distance" in line]
    print(f"Jensen-Shannon distance to the group's beliefs: {measured[0]:.3f} before, {measured[-1]:.3f} after GDPO")
    print(beliefs_picture.draw(config, out / "base-model", out / "model", out / PICTURE))
    print(f"exported model: {out / 'model'} ({time.perf_counter() - began:.0f} s in all)")
    return 0


def _folder(overrides: list[Override]) -> tuple[Path, list[Override]]:
    """Where all stages are kept, which `run.dir` names, and the other options."""
    given = [value for key, value in overrides if key == "run.dir" and value is not None]
    out = Path(str(given[-1])) if given else OUT
    return out, [(key, value) for key, value in overrides if key != "run.dir"]


def _stage(out: Path) -> list[Override]:
    """The files of GDPO's config, below `out`."""
    files = {"run.dir": "gdpo", "model.path": "base-model", "data.train": "train.jsonl", "data.eval": "eval.jsonl"}
    return [(key, str(out / name)) for key, name in files.items()]


def _base_stage(out: Path) -> list[Override]:
    """The files of the base model's config, below `out`."""
    files = {"run.dir": "base", "model.tokenizer": "tokenizer", "data.train": "base.jsonl"}
    return [(key, str(out / name)) for key, name in files.items()]


def _train(config: Config) -> Run:
    """Trains anew."""
    folder = RunFolder(Path(config.run.dir))
    if not folder.is_run and not folder.is_empty:
        raise UserError(f"run.dir: {folder.path} is not a run folder, and the quick start would replace it; choose another")
    folder.remove()
    return train(config)
