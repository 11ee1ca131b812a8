"""The metrics of a run, handed to every sink that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from align_jax.errors import UserError
from align_jax.training.logs.sink import Context
from align_jax.training.logs.table import find_sink


class MetricsLog:
    """Writes the metrics of a run, one call per step, to `metrics.jsonl` and other sinks.

    Args:
      run_dir: the run's folder; made if missing.
      total_steps: for the time left.
      resume_step: what was written of later steps is void; None starts anew.
      every: only steps that are a multiple of it are logged, besides those with `eval/` metrics and the last one.
      progress: show a progress line on `stream`: a bar on a terminal, else a plain line every few seconds.
      tensorboard: write event files to `run_dir/tensorboard`.
      wandb_project: log to this Weights & Biases project; a resumed run continues its page.
      wandb_name: the name of the run there.
      sinks: further ones: names of files of this folder, or `package.module:Class`, called with a `Context`.
      config: what sinks see as the run's config.
      active: False (processes other than the first) makes every method do nothing.
      stream: where progress goes; None is stderr.

    Raises:
      UserError: the folder or file cannot be written, an earlier line is not JSON, or a sink is not there (such as wandb).
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        total_steps: int,
        resume_step: int | None = None,
        every: int = 1,
        progress: bool = True,
        tensorboard: bool = False,
        wandb_project: str | None = None,
        wandb_name: str | None = None,
        sinks: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        active: bool = True,
        stream: TextIO | None = None,
    ):
        self._every, self._total, self._sinks = every, total_steps, []
        if not active:
            return
        wanted: dict[str, Callable[[Context], Any]] = {}
        if progress:
            wanted["progress"] = partial(find_sink("progress"), stream=stream)
        wanted["jsonl"] = find_sink("jsonl")
        if tensorboard:
            wanted["tensorboard"] = find_sink("tensorboard")
        if wandb_project is not None:
            wanted["wandb"] = partial(find_sink("wandb"), project=wandb_project, name=wandb_name)
        wanted |= {name: find_sink(name) for name in sinks if name not in wanted}
        run_dir = Path(run_dir)
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run.dir: cannot write to {run_dir}: {error}") from error
        context = Context(run_dir, total_steps, resume_step, dict(config or {}))
        for name, make in wanted.items():
            self._open(name, make, context)

    def _open(self, name: str, make: Callable[[Context], Any], context: Context) -> None:
        try:
            self._sinks.append(make(context))
        except OSError as error:
            self.close()
            raise UserError(f"run.dir: the {name} log cannot be written to {context.run_dir}: {error}") from error
        except BaseException:
            self.close()
            raise

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of a step; UserError when a file cannot be written (disk full)."""
        skipped = step % self._every and step != self._total and not any(name.startswith("eval/") for name in metrics)
        values = {name: float(value) for name, value in metrics.items()}
        for sink in self._sinks:
            if skipped and not getattr(sink, "every_step", False):
                continue
            try:
                sink.write(step, values)
            except OSError as error:
                raise UserError(f"cannot write the metrics of step {step}: {error}") from error

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hands samples (`log.samples_every`) to every sink that takes them."""
        for sink in self._sinks:
            if take := getattr(sink, "samples", None):
                take(step, rows)

    def close(self) -> None:
        """Closes every sink; afterwards nothing is logged."""
        closing, self._sinks = self._sinks, []
        for sink in closing:
            sink.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
