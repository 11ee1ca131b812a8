"""What a cell of an experiment may use: folders of its own, data, a model, and the library's own jobs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from align_jax.config import Config
from align_jax.errors import UserError
from align_jax.experiments.options import Options
from align_jax.recipes.jobs import Rounds, Run, evaluate, export, generate, score, train

DATA = "ALIGN_JAX_DATA"


class JobStopped(Exception):
    """A job was told to stop; what it had is kept, and the same command goes on."""


@dataclasses.dataclass(frozen=True)
class Workplace:
    """The place of a cell.

    Attributes:
      folder: of the cell, removed when it is measured. shared: of the whole experiment, kept until it ends.
      common: of all experiments, kept.
      options: of the command.
    """

    folder: Path
    shared: Path
    common: Path
    options: Options

    @property
    def model(self) -> Path:
        """The folder of the model that `--model` names."""
        from align_jax.experiments.models import model_folder

        return model_folder(self.options.model)

    @property
    def large(self) -> bool:
        """Whether steps take seconds, so that jobs say how far they are."""
        return self.options.model != "tiny"

    def data(self, name: str) -> Path:
        """A file or folder of `$ALIGN_JAX_DATA`."""
        return data_root() / name

    def train(self, values: Mapping[str, Any], name: str = "run", *, shared: bool = False) -> Run:
        """Trains as a config says (nested dicts), in a folder of the cell; goes on where an earlier start ended.

        Args:
          values: the config, without `run.dir`. name: of the run's folder.
          shared: whether other cells use it too: then it lies in `shared`, and is trained once.

        Raises:
          JobStopped: SIGTERM came first.
        """
        run = train(self.config(values, name, shared=shared))
        if isinstance(run, Rounds | Run) and not run.finished:
            raise JobStopped
        return run

    def config(self, values: Mapping[str, Any], name: str = "run", *, shared: bool = False) -> Config:
        """The config that `train` takes: quiet where the model is tiny, a checkpoint at the end alone."""
        folder = (self.shared if shared else self.folder) / name
        log = {"quiet": not self.large} | dict(values.get("log", {}))
        checkpoint = {"keep": 1} | dict(values.get("checkpoint", {}))
        own = {"run": {"dir": str(folder)} | dict(values.get("run", {})), "log": log, "checkpoint": checkpoint}
        return Config.of({**values, **own})

    def export_to(self, run: Run, folder: Path) -> Path:
        """The last checkpoint of a run as a Hugging Face folder."""
        export(run.folder, folder, overwrite=True)
        return folder

    def evaluate(self, values: Mapping[str, Any], name: str = "run") -> dict[str, dict[str, Any]]:
        """What `align-jax evaluate` measures of the run: metric -> row with `value`, `low` and `high`."""
        rows = evaluate(self.config(values, name))
        last = rows[-1]["model"]
        return {row["metric"]: row for row in rows if row["model"] == last}

    def generate(self, *args: Any, **options: Any) -> Any:
        """`align_jax.generate`."""
        return generate(*args, **options)

    def score(self, *args: Any, **options: Any) -> Any:
        """`align_jax.score`."""
        return score(*args, **options)

    def once(self, name: str, make: Callable[[Path], None], *, common: bool = False) -> Path:
        """A file or folder that all cells share: made by the first one, whole or not at all.

        Args:
          name: of it. make: path -> None, writes it there. common: whether other experiments use it, too.
        """
        path = (self.common if common else self.shared) / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            begun = path.with_name(f".{path.name}.begun")
            shutil.rmtree(begun, ignore_errors=True) if begun.is_dir() else begun.unlink(missing_ok=True)
            make(begun)
            os.replace(begun, path)
        return path


def data_root() -> Path:
    """The folder that `$ALIGN_JAX_DATA` names.

    Raises:
      UserError: it is not set, or is no folder.
    """
    value = os.environ.get(DATA, "")
    if not value or not Path(value).is_dir():
        raise UserError(f"{DATA} must name the folder with preferences/, opinions/ and stories260k/, got {value!r}")
    return Path(value)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
