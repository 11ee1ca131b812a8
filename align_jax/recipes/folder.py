"""The folder of a run: what is written to it before training, and whether it is this run's."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import jax

from align_jax import hf
from align_jax.config import Config, load_config
from align_jax.errors import UserError
from align_jax.files import write_whole
from align_jax.recipes import setup as assemble

GENERATION_CONFIG = "generation_config.json"


def say(line: str) -> None:
    """One line for the user, from the first process only."""
    if jax.process_index() == 0:
        print(f"align-jax: {line}", file=sys.stderr, flush=True)


def prepare_folder(folder: Path, config: Config, start: assemble.Start, tokenizer) -> None:
    """Writes config.yaml, the tokenizer and the model's config.json to the run folder, for resuming and exporting.

    Raises:
      UserError: the folder holds another run's checkpoints: the keys that decide its weights differ.
    """
    previous = folder / "config.yaml"
    if previous.exists() and has_checkpoints(newest_run(folder)):
        check_same_run(load_config(previous), config, folder)
    if jax.process_index() != 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(previous, config.to_yaml())
    tokenizer.save_pretrained(folder / "tokenizer")
    if start.hf_config is not None:
        write_whole(folder / "model_config.json", json.dumps(start.hf_config, indent=2))
    generation_config = hf.load_generation_config(start.folder) if start.folder is not None else None
    if generation_config is not None:
        write_whole(folder / GENERATION_CONFIG, json.dumps(generation_config, indent=2))


def has_checkpoints(folder: Path) -> bool:
    """Whether a run folder holds a complete checkpoint."""
    return any(path.name.isdigit() for path in (folder / "checkpoints").glob("[0-9]*"))


def newest_run(folder: Path) -> Path:
    """The folder with a run's newest checkpoints: with on-policy rounds that of the last round that has any, else itself."""
    rounds = [path for path in (folder / "rounds").glob("[0-9]*") if path.name.isdigit() and has_checkpoints(path)]
    return max(rounds, key=lambda path: int(path.name), default=folder)


# Sections and keys that a resumed run may change: they decide where and how fast it runs, or how it is watched.
FREE = (
    *("mesh", "log", "checkpoint", "generate", "score", "evaluate", "bench", "reference.cache_dir", "run.dir"),
    *("train.steps", "train.epochs"),
    *("model.remat", "model.rows_per_chunk", "model.head_chunk", "model.attention", "train.accumulation_steps"),
    *("train.eval_every", "data.eval", "data.eval_split", "data.workers", "data.prefetch"),
)


def check_same_run(old: Config, new: Config, folder: Path, free: tuple[str, ...] = FREE) -> None:
    """Raises UserError naming the first key on which a run folder's config and the one given differ."""
    before, after = flat(old.to_dict()), flat(new.to_dict())
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and not any(key == f or key.startswith(f + ".") for f in free):
            raise UserError(
                f"{folder} holds checkpoints of a run with {key}={before.get(key)!r}, but {key}={after.get(key)!r} was "
                "given; choose another run.dir, or give the same value to resume"
            )


def flat(tree: dict, prefix: str = "") -> dict:
    """A nested dict with dotted keys."""
    result = {}
    for name, value in tree.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def remove_run(folder: Path) -> None:
    """Deletes a run folder, so that an experiment starts anew."""
    shutil.rmtree(folder, ignore_errors=True)


def fingerprint_checkpoint(folder: Path) -> list:
    """What tells a run's newest checkpoint from others: its folder, its step, and when it was written."""
    step = max(int(p.name) for p in (folder / "checkpoints").glob("[0-9]*") if p.name.isdigit())
    return [str(folder.resolve()), step, (folder / "checkpoints" / str(step)).stat().st_mtime_ns]
