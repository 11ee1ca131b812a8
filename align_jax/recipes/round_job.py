"""A run of on-policy rounds: its folders and models, and the files that all of its processes see."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from align_jax.config import Config
from align_jax.config.lora import LoraConfig
from align_jax.config.sections import ReferenceConfig
from align_jax.data import DataConfig
from align_jax.files import write_whole
from align_jax.parallel.processes import of_first, on_first
from align_jax.parallel.stop import StopSignal

EVALUATION, EVAL_PROMPTS, LINES, PAIRS = "evaluation.json", "eval_prompts.jsonl", "rounds.jsonl", "pairs.jsonl"


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of several rounds.

    Attributes:
      start: folder (or hub id) of the model at the start.
      prompts: rows with `prompt`, of the training data.
    """

    config: Config
    start: str
    prompts: list[dict[str, Any]]
    stop: StopSignal

    @property
    def root(self) -> Path:
        return Path(self.config.run.dir)

    def at(self, number: int) -> Path:
        """The folder of a round; round 0 is the start."""
        return self.root / "rounds" / str(number)

    def model(self, number: int) -> str:
        """The model after a round."""
        return str(self.at(number) / "model") if number else self.start

    @property
    def has_beliefs(self) -> bool:
        """Whether a belief is drawn before each text."""
        return self.config.objective.arrangement.has_beliefs

    def stopped(self) -> bool:
        return self.stop.requested()

    def with_model(self, number: int, **sections) -> Config:
        """The config of one step, which begins from the model after a round; of an adapter, from its model with it."""
        tokenizer, lora = self.config.model.tokenizer or self.start, self.config.lora
        path = self.model(number) if lora is None else self.start
        if lora is not None and number:
            lora = LoraConfig(path=self.model(number), dropout=lora.dropout)
        model = dataclasses.replace(self.config.model, path=path, revision=None, config=None, tokenizer=tokenizer)
        return dataclasses.replace(self.config, model=model, lora=lora, rounds=None, **sections)

    def reference(self) -> ReferenceConfig:
        """The reference of a round's training: the model at the start of the run, or of the round."""
        config = self.config
        given = config.lora.path if config.lora is not None else None
        run = {"path": self.start} if given is None else {"adapter": given}
        own = run if config.rounds.reference == "run" else {}
        return dataclasses.replace(config.reference, **{"path": None, "adapter": None} | own)

    def evaluated(self, number: int) -> bool:
        """Whether a round has all of its evaluation; the same on every process."""
        return bool(of_first(self._evaluated(number)))

    def _evaluated(self, number: int) -> bool:
        file = self.at(number) / EVALUATION
        return file.exists() and (self.config.rounds.gold_model is None or "eval/gold" in self.evaluation(number))

    def evaluation(self, number: int) -> dict[str, Any]:
        """What the evaluation of a round found."""
        return json.loads((self.at(number) / EVALUATION).read_text(encoding="utf-8"))


def of_own_files(config: Config) -> DataConfig:
    """The data section for files that the rounds wrote, which have none of the parts that a data set may have."""
    whole = {"split": None, "eval_split": None, "subset": None, "revision": None, "streaming": False}
    return dataclasses.replace(config.data, **whole, on_empty="keep")


def samples_data(config: Config, scored: Path, **more: Any) -> DataConfig:
    """The data section that trains on samples with their scores."""
    plain = {"format": "samples", "eval": None, "max_rows": None, "on_bad_row": "error"}
    return dataclasses.replace(of_own_files(config), train=str(scored), **plain | more)


def pairs_data(config: Config, pairs: Path) -> DataConfig:
    """The data section that trains on pairs of texts given a belief, whose distributions are known."""
    plain = {"format": "gdpo", "eval": None, "max_rows": None, "on_bad_row": "error", "target": "auto"}
    return dataclasses.replace(of_own_files(config), train=str(pairs), **plain)


def write(path: Path, text: str) -> None:
    """Writes a file that all processes see afterwards."""

    def on_one() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)

    on_first(on_one, str(path))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes JSONL that all processes see afterwards."""
    write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of JSONL."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]
