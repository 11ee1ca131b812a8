"""The folder of a run: what stands in it, and whether it is this run's."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from align_jax import hf
from align_jax.config import Config, load_config
from align_jax.config.began import of_run
from align_jax.config.identity import FREE, difference
from align_jax.errors import UserError
from align_jax.files import write_whole
from align_jax.lock import check_held, held
from align_jax.models import ModelConfig
from align_jax.models.adapter import Adapter
from align_jax.parallel.processes import from_first, of_first, on_first
from align_jax.parallel.stop import cleaned_up
from align_jax.parsing import json_of
from align_jax.recipes.onpolicy import best_round
from align_jax.recipes.say import say
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.logs import read_metrics

CONFIG, METRICS, MODEL_CONFIG, GENERATION_CONFIG = "config.yaml", "metrics.jsonl", "model_config.json", "generation_config.json"
ADAPTER = "adapter.json"  # the shape of the adapter that is trained
LOCK = ".lock"
DUE = "evaluation_due.json"  # the step whose evaluation was stopped
MARK = "run.json"  # which run this is: its checkpoints say the same
# What a start leaves before its first step.
_BEGUN = (CONFIG, METRICS, MARK, MODEL_CONFIG, GENERATION_CONFIG, ADAPTER, "tokenizer", "checkpoints", "tensorboard",
          "samples.jsonl", "bad_rows.*.jsonl", "*.tmp", "spool/*.tmp", "spool/rendered-*.json")  # fmt: skip


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
        return load_config(of_run(self.path / CONFIG))

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(int(path.name) for path in (self.path / "checkpoints").glob("[0-9]*") if path.name.isdigit())

    @property
    def newest(self) -> RunFolder:
        """The folder with the run's newest checkpoints: with on-policy rounds that of the last round that has any."""
        folders = [RunFolder(path) for path in (self.path / "rounds").glob("[0-9]*") if path.name.isdigit()]
        return max((folder for folder in folders if folder.steps), key=lambda folder: int(folder.path.name), default=self)

    @property
    def chosen(self) -> RunFolder:
        """The folder that stands for the run: `newest`, or the round that `rounds.best` of its config chooses.

        Raises:
          UserError: the checkpoints of that round were deleted.
        """
        file, rounds = self.path / "rounds.jsonl", self.config.rounds if self.is_run else None
        if rounds is None or rounds.best == "last" or not file.exists():
            return self.newest
        try:
            lines = [json_of(line) for line in file.read_bytes().splitlines()]
        except ValueError as error:
            raise UserError(f"{file}: a line is no JSON: {error}") from error
        number = best_round(lines, rounds.best)
        folder = RunFolder(self.path / "rounds" / str(number)) if number else self.newest
        if number and not folder.steps:
            raise UserError(f"round {number} is the best by {rounds.best}, but {folder.path} has no checkpoint any more")
        return folder

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

    @property
    def has_shape(self) -> bool:
        """Whether the folder says which model it trains."""
        return self.hf_config is not None or self.config.model.config is not None

    @functools.cached_property
    def shape(self) -> ModelConfig:
        """The shape of the model that the run trains, with the head that its objective needs."""
        if not self.has_shape:
            raise UserError(
                f"{self.path} has no {MODEL_CONFIG}, which says what its weights are; put it back: it is the config.json of "
                f"{self.config.model.at}"
            )
        if self.hf_config is None:
            shape = self.config.model.fresh_config()
        else:
            shape = hf.model_config_from_hf(self.hf_config, str(self.path / MODEL_CONFIG), None)
        adapter = None if self.config.lora is None else Adapter.of(self._json(ADAPTER))
        return dataclasses.replace(shape, head=self.config.head, quantize=self.config.model.quantize, lora=adapter)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none before the first step."""
        file = self.path / METRICS
        return read_metrics(file) if file.exists() else []

    def fingerprint(self) -> list[Any]:
        """What tells the newest checkpoint from others: its folder, its step, and when it was written."""
        step = self.steps[-1]
        return [str(self.path.resolve()), step, (self.path / "checkpoints" / str(step)).stat().st_mtime_ns]

    @property
    def trained(self) -> bool:
        """Whether steps were made here: there is a checkpoint, a round, or a line of metrics that is not of the start alone."""
        if self.steps or (self.path / "rounds").exists():
            return True
        try:
            return any(line["step"] > 0 for line in self.history)
        except UserError:  # lines that are none: somebody's work
            return True

    def checkpoints(self, config: Config) -> Checkpointer:
        """The checkpoints, to be written as the `checkpoint` section says."""
        options = config.checkpoint
        chosen = (options.keep, options.best_metric, options.mode)
        return Checkpointer(self.path / "checkpoints", *chosen, every=save_every(config), forever=options.keep_every)

    def best_step(self) -> int:
        """The step of the checkpoint with the best `checkpoint.best_metric` of the run.

        Raises:
          UserError: the run had none, or no checkpoint has it.
        """
        options, folder = self.config.checkpoint, self.path / "checkpoints"
        if options.best_metric is None:
            raise UserError(f"{self.path} was trained without checkpoint.best_metric; give a step, one of {self.steps}")
        with Checkpointer(folder, 1, options.best_metric, options.mode, read_only=True) as checkpoints:
            found = from_first("the best checkpoint", checkpoints.best_step)
        if found is None:
            raise UserError(f"{self.path}: no checkpoint of steps {self.steps} has the metric {options.best_metric!r}")
        return found

    def check_same(self, config: Config, free: tuple[str, ...] = FREE, began: Config | None = None) -> None:
        """UserError naming the first key on which the run's config and the one given differ, beside those in `free`.

        Args:
          began: the run's; None: that of the folder.
        """
        found = difference((began or self.config).to_dict(), config.to_dict(), free)
        if found:
            key, before, after = found
            edited = "" if began is None else f" ({self.path / CONFIG} was edited since)"
            raise UserError(
                f"{self.path} holds checkpoints of a run with {key}={before!r}, but {key}={after!r} was given{edited}; choose "
                "another run.dir, or give the same value to resume"
            )

    @property
    def mark(self) -> str | None:
        """The id of the run, which its checkpoints have, too; None before its first step, and of earlier versions.

        Raises:
          UserError: the file holds something else.
        """
        try:
            values = self._json(MARK)
        except UserError as error:
            raise UserError(f"{error}; remove the file, and the run takes the id of its newest checkpoint again") from error
        return None if values is None else values.get("id")

    def check_written_here(self, mark: str | None, step: int) -> None:
        """Takes the id of a checkpoint of the folder for the folder's own where it has none; all processes must call.

        Raises:
          UserError: the folder is another run's.
        """

        def compare() -> None:
            if mark is not None and self.mark is None:
                self._write_mark(mark)
            elif mark is not None and self.mark != mark:
                raise UserError(
                    f"{self.path / 'checkpoints' / str(step)} was written by run {mark}, and {self.path} is the folder of run "
                    f"{self.mark} ({MARK}): another run's checkpoint was put there; move it away, or choose another run.dir"
                )

        on_first(compare, str(self.path))

    def _write_mark(self, mark: str) -> None:
        write_whole(self.path / MARK, json.dumps({"id": mark, "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}) + "\n")

    def evaluation_due(self, step: int | None) -> None:
        """Notes that the evaluation of a step was left out for a stop, to be made by the next start; None: it was made."""
        if jax.process_index() == 0 and step:
            write_whole(self.path / DUE, json.dumps({"step": step}))
        elif jax.process_index() == 0:
            (self.path / DUE).unlink(missing_ok=True)

    def is_due(self, step: int) -> bool:
        """Whether the evaluation of a step was left out; all processes must call."""
        return bool(of_first((self._json(DUE) or {}).get("step") == step))

    def check_held(self) -> None:
        """UserError where another process took the folder over; all processes must call."""
        on_first(lambda: check_held(self.path / LOCK), str(self.path))

    def check(self, config: Config) -> None:
        """UserError where the folder holds checkpoints of another run, or of one whose config is gone: a key that decides
        its weights differs, or may."""
        if self.newest.steps and not self.is_run:
            raise UserError(
                f"{self.path} holds checkpoints, and no {CONFIG} that says of which run; put it back (the YAML that the run "
                "began with will do), or choose another run.dir"
            )
        if self.newest.steps:
            self.check_same(config)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """The folder is this start's alone while the block runs; what a start without any step left there is removed.

        Rows that were streamed from the hub stay, for the next start.

        Raises:
          UserError: another process trains there, or the folder cannot be written.
        """
        with contextlib.ExitStack() as stack:
            on_first(lambda: stack.enter_context(self._claimed()), str(self.path))
            yield

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        lock = held(self.path / LOCK, f"run.dir: {self.path}", "wait for it, stop it, or choose another run.dir", say)
        with cleaned_up(lambda: _remove_empty(made)), contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock)
            except OSError as error:
                raise UserError(f"run.dir: cannot write to {self.path}: {error.strerror}") from error
            there = set(self._begun())
            with cleaned_up(lambda: self._forget(there)):
                yield

    def _begun(self) -> Iterator[Path]:
        return (path for pattern in _BEGUN for path in self.path.glob(pattern))

    def _forget(self, there: set[Path]) -> None:
        """Removes what was not there before, unless steps were made."""
        if self.trained:
            return
        for path in set(self._begun()) - there:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        _remove_empty([self.path / "spool"])

    def set_metrics_aside(self) -> Path | None:
        """Keeps the metrics of steps that no checkpoint holds as `metrics.jsonl.1`, `.2`, ...; None where there are none."""
        file = self.path / METRICS
        if jax.process_index() != 0 or not any(line["step"] > 0 for line in self.history):
            return None
        kept = next(path for n in range(1, 10**6) if not (path := file.with_name(f"{METRICS}.{n}")).exists())
        os.replace(file, kept)
        return kept

    def write(self, config: Config, source: Any) -> None:
        """Writes what resuming and exporting need: the config, the tokenizer, and the model's own config files.

        Args:
          source: the `ModelSource` of the starting model.
        """
        if jax.process_index() != 0:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / CONFIG, config.to_yaml())
        if self.mark is None:
            self._write_mark(secrets.token_hex(4))
        source.tokenizer.save_pretrained(self.tokenizer)
        adapter = None if source.shape.lora is None else dataclasses.asdict(source.shape.lora)
        files = ((MODEL_CONFIG, source.hf_config), (GENERATION_CONFIG, source.generation_config), (ADAPTER, adapter))
        for name, values in files:
            if values is not None:
                write_whole(self.path / name, json.dumps(values, indent=2))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it, but perhaps the lock of a start that was killed."""
        return not self.path.exists() or all(path.name == LOCK for path in self.path.iterdir())

    def remove(self) -> None:
        """Deletes the folder, so that an experiment starts anew; UserError while another process trains there."""
        with self.claimed():
            shutil.rmtree(self.path, ignore_errors=True)

    def _json(self, name: str) -> dict[str, Any] | None:
        file = self.path / name
        return hf.read_json(file) if file.exists() else None


def save_every(config: Config) -> int | None:
    """Steps between checkpoints: as asked for, else as between evaluations where one of these decides the best."""
    by_evaluations = (config.checkpoint.best_metric or "").startswith("eval/")
    return config.checkpoint.every or (config.train.eval_every if by_evaluations else None)


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders, the innermost first, that hold nothing."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
