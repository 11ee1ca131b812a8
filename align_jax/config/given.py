"""What stands in the place of a config on the command line: a YAML file, a run folder, a model's folder or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from align_jax.config.began import of_run
from align_jax.config.source import ConfigValues, Override, escaped
from align_jax.errors import UserError
from align_jax.parsing import json_of


def config_of(word: str, command: str, folders: bool = True) -> tuple[ConfigValues, list[Override]]:
    """The values of a config file, or those that a folder or hub id stands for.

    Args:
      word: what was given. command: that it was given to.
      folders: whether the command takes the folder of a run or a model, or a hub id.

    Returns:
      What was read, and what follows from the folder, as if it were given as options.

    Raises:
      UserError: a file that cannot be read, or a folder that is neither.
    """
    folder = Path(word)
    if folder.is_dir():
        is_run = (folder / "config.yaml").exists()
        if not folders:
            raise UserError(_no_folder(folder, is_run, command))
        if is_run:
            return _of_run(folder)
        if not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
            known = "a run folder (config.yaml) nor a model's (config.json)"
            raise UserError(f"{word} is a folder, but neither {known}; give one of these, or a config file")
        return _of_model(word, command, folder / "config.json")
    if folders and _is_hub_id(word):
        return _of_model(word, command, None)
    return ConfigValues.read(word), []


def _no_folder(folder: Path, is_run: bool, command: str) -> str:
    if is_run:
        return (
            f"{folder} is a run folder; `align-jax {command}` takes a config file: that of this run is {folder / 'config.yaml'}"
        )
    model = f"; a model is named in it, or by --model.path {folder}" if (folder / "config.json").exists() else ""
    return f"{folder} is a folder; `align-jax {command}` takes a config file{model}"


def _of_run(folder: Path) -> tuple[ConfigValues, list[Override]]:
    """The run's own config; the folder may have been moved, its tokenizer with it."""
    tokenizer = folder / "tokenizer"
    moved = [("model.tokenizer", str(tokenizer))] if tokenizer.exists() else []
    return of_run(folder / "config.yaml"), [("run.dir", str(folder)), *moved]


def _of_model(word: str, command: str, config: Path | None) -> tuple[ConfigValues, list[Override]]:
    if command == "score" and config is not None and _is_reward_model(config):
        return ConfigValues(word, {}, {}), [("score.reward_model", word), ("score.logps", False)]
    results = [("run.dir", f"runs/evaluate-{Path(word).name}")] if command == "evaluate" else []
    return ConfigValues(word, {}, {}), [("model.path", word), *results]


def _is_reward_model(config: Path) -> bool:
    try:
        architectures = json_of(config.read_bytes()).get("architectures") or []
    except (OSError, ValueError, AttributeError):  # whoever loads the model says what is wrong
        return False
    return any(str(name).endswith("ForSequenceClassification") for name in architectures)


def _is_hub_id(word: str) -> bool:
    """`owner/name`, where nothing here looks like it."""
    owner = word.partition("/")[0]
    here = any(Path(place).exists() for place in (word, owner, f"{word}.yaml"))
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", word) is not None and not here and not word.endswith((".yaml", ".yml"))


def data_of(word: str, command: str) -> tuple[ConfigValues, list[Override]]:
    """The values of a config file or a run folder; of anything else, a config whose `data.train` it is.

    Args:
      word: a data file, a folder of data, a hub id or the name of a known data set; or a config's file or a run's folder.
      command: that it was given to.

    Raises:
      UserError: a config that cannot be read.
    """
    if word.endswith((".yaml", ".yml")) or (Path(word) / "config.yaml").exists():
        return config_of(word, command)
    known = False
    if re.fullmatch(r"[\w-]+", word) and not Path(word).exists():
        from align_jax.data.named import NAMED  # imports much, for a word that can hardly be anything else

        known = word.lower() in NAMED
    return ConfigValues("DATA", escaped({"data": {"train": {"name": word} if known else word}}), {}), []
