"""The folder of a run: what stands in it, and whether it is this run's."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax

from align_jax import hf
from align_jax.config import Config, load_config
from align_jax.config.identity import FREE, difference
from align_jax.errors import UserError
from align_jax.files import write_whole
from align_jax.models import ModelConfig
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.logs import read_metrics

CONFIG, METRICS, MODEL_CONFIG, GENERATION_CONFIG = "config.yaml", "metrics.jsonl", "model_config.json", "generation_config.json"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """`run.dir`: config.yaml, metrics.jsonl, checkpoints/, tokenizer/, and model_config.json where the model was not fresh.

    With on-policy rounds, `rounds/N/` are the folders of ordinary runs.
    """

    path: Path

    @property
    def is_run(self) -> bool:
        """Whether a run began here."""
        return (self.path / CONFIG).exists()

    @functools.cached_property
    def config(self) -> Config:
        """The config that the run was started with.

        Raises:
          UserError: there is none, so this is no run folder.
        """
        if not self.is_run:
            raise UserError(f"{self.path} is not a run folder: it has no {CONFIG}")
        return load_config(self.path / CONFIG)

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(int(path.name) for path in (self.path / "checkpoints").glob("[0-9]*") if path.name.isdigit())

    @property
    def newest(self) -> RunFolder:
        """The folder with the run's newest checkpoints: with on-policy rounds that of the last round that has any."""
        folders = [RunFolder(path) for path in (self.path / "rounds").glob("[0-9]*") if path.name.isdigit()]
        return max((folder for folder in folders if folder.steps), key=lambda folder: int(folder.path.name), default=self)

    @functools.cached_property
    def hf_config(self) -> dict[str, Any] | None:
        """The `config.json` that the model came from; None for a fresh model."""
        return self._json(MODEL_CONFIG)

    @property
    def generation_config(self) -> dict[str, Any] | None:
        """The `generation_config.json` that the model came with, if any."""
        return self._json(GENERATION_CONFIG)

    @property
    def tokenizer(self) -> Path:
        """The folder of the run's tokenizer."""
        return self.path / "tokenizer"

    @functools.cached_property
    def shape(self) -> ModelConfig:
        """The shape of the model that the run trains, with the head that its objective needs."""
        if self.hf_config is None:
            shape = self.config.model.fresh_config()
        else:
            shape = hf.model_config_from_hf(self.hf_config, str(self.path / MODEL_CONFIG), None)
        return dataclasses.replace(shape, head=self.config.head)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none before the first step."""
        file = self.path / METRICS
        return read_metrics(file) if file.exists() else []

    def fingerprint(self) -> list[Any]:
        """What tells the newest checkpoint from others: its folder, its step, and when it was written."""
        step = self.steps[-1]
        return [str(self.path.resolve()), step, (self.path / "checkpoints" / str(step)).stat().st_mtime_ns]

    def checkpoints(self, config: Config) -> Checkpointer:
        """The checkpoints, to be written as the `checkpoint` section says."""
        options = config.checkpoint
        return Checkpointer(self.path / "checkpoints", options.keep, options.best_metric, options.best_mode)

    def check_same(self, config: Config, free: tuple[str, ...] = FREE) -> None:
        """UserError naming the first key on which the folder's config and the one given differ, beside those in `free`."""
        found = difference(self.config.to_dict(), config.to_dict(), free)
        if found:
            key, before, after = found
            raise UserError(
                f"{self.path} holds checkpoints of a run with {key}={before!r}, but {key}={after!r} was given; choose another "
                "run.dir, or give the same value to resume"
            )

    def prepare(self, config: Config, source: Any) -> None:
        """Writes what resuming and exporting need: the config, the tokenizer, and the model's own config files.

        Args:
          source: the `ModelSource` of the starting model.

        Raises:
          UserError: the folder holds checkpoints of another run: a key that decides its weights differs.
        """
        if self.is_run and self.newest.steps:
            RunFolder(self.path).check_same(config)
        if jax.process_index() != 0:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / CONFIG, config.to_yaml())
        source.tokenizer.save_pretrained(self.tokenizer)
        for name, values in ((MODEL_CONFIG, source.hf_config), (GENERATION_CONFIG, source.generation_config)):
            if values is not None:
                write_whole(self.path / name, json.dumps(values, indent=2))

    def remove(self) -> None:
        """Deletes the folder, so that an experiment starts anew."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _json(self, name: str) -> dict[str, Any] | None:
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
