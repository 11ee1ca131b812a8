"""Where metrics go: `metrics.jsonl`, one progress line, and by config TensorBoard and Weights & Biases. No jax here."""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from align_jax.errors import UserError

# The only metrics that differ between a run and the same run killed and resumed.
TIMING_PREFIXES = ("time/", "memory/")
PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal


class _Sink(Protocol):
    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class MetricsLog:
    """Writes the metrics of a run, one call a step.

    `metrics.jsonl` is appended and flushed line by line, so that a killed process loses nothing it logged. A value that
    is NaN or infinite is written as `null`, since JSON has no such numbers.

    Args:
      run_dir: the run's folder; made if missing.
      total_steps: for the time left.
      resume_step: lines of later steps are dropped, so that the resumed file equals an uninterrupted one (but for
        `TIMING_PREFIXES`); None starts the file anew.
      every: only steps that are a multiple of it are logged, besides those with `eval/` metrics and the last one.
      progress: show a progress line on `stream`: a bar on a terminal, else a plain line every few seconds.
      tensorboard: write event files to `run_dir/tensorboard`.
      wandb_project: log to this Weights & Biases project; a resumed run continues its page.
      wandb_name: the name of the run there.
      config: what Weights & Biases shows as the run's config.
      active: False (processes other than the first) makes every method do nothing.
      stream: where progress goes; None is stderr.

    Raises:
      UserError: the folder or file cannot be written, an earlier line is not JSON, or wandb is not installed.
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
        config: Mapping[str, Any] | None = None,
        active: bool = True,
        stream: TextIO | None = None,
    ):
        self._every, self._total, self._active = every, total_steps, active
        self._sinks: list[_Sink] = []
        self._progress: _Progress | None = None
        if not active:
            return
        run_dir = Path(run_dir)
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._sinks.append(_JsonLines(run_dir / "metrics.jsonl", resume_step))
            if tensorboard:
                self._sinks.append(_TensorBoard(run_dir / "tensorboard", resume_step))
        except OSError as error:
            raise UserError(f"run.dir: cannot write to {run_dir}: {error}") from error
        if wandb_project is not None:
            resumed = resume_step is not None
            self._sinks.append(_WeightsAndBiases(run_dir, wandb_project, wandb_name, config, resumed))
        if progress:
            self._progress = _Progress(total_steps, resume_step or 0, stream or sys.stderr)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of a step; UserError when a file cannot be written (disk full)."""
        if not self._active:
            return
        if self._progress is not None:
            self._progress.update(step, metrics)
        if step % self._every and step != self._total and not any(name.startswith("eval/") for name in metrics):
            return
        values = {name: float(value) for name, value in metrics.items()}
        for sink in self._sinks:
            try:
                sink.write(step, values)
            except OSError as error:
                raise UserError(f"cannot write the metrics of step {step}: {error}") from error

    def message(self, text: str) -> None:
        """Prints a line without breaking the progress line."""
        if self._active:
            tqdm.write(text, file=self._progress.stream if self._progress else sys.stderr)

    def close(self) -> None:
        """Ends the progress line and closes the files."""
        if self._progress is not None:
            self._progress.close()
        for sink in self._sinks:
            sink.close()
        self._sinks, self._progress, self._active = [], None, False

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without a last line that a kill cut short.

    Raises:
      UserError: another line is not a JSON object with a step; names file and line.
    """
    lines = Path(path).read_bytes().split(b"\n")
    records = []
    # what follows the last newline was cut short
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            record["step"] + 0
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}:{number}: not a line of metrics: {line[:80]!r}; mend or remove it") from error
        records.append(record)
    return records


class _JsonLines:
    def __init__(self, path: Path, resume_step: int | None):
        kept = []
        if resume_step is not None and path.exists():
            kept = [record for record in read_metrics(path) if record["step"] <= resume_step]
        # by way of another file, so that a kill here loses no line
        temporary = path.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(f"{json.dumps(record)}\n" for record in kept))
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(f"{json.dumps({'step': step, **finite}, allow_nan=False)}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _TensorBoard:
    def __init__(self, folder: Path, resume_step: int | None):
        from tensorboardX import SummaryWriter

        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(logdir=str(folder), purge_step=purge)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, run_dir: Path, project: str, name: str | None, config: Mapping[str, Any] | None, resumed: bool):
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise UserError(
                f"log.wandb_project is {project!r}, but wandb cannot be imported ({error}); "
                "pip install wandb, or remove log.wandb_project"
            ) from error
        identity = run_dir / "wandb_run_id"
        if not (resumed and identity.exists()):
            identity.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=project,
            name=name,
            config=dict(config or {}),
            dir=str(run_dir),
            id=identity.read_text().strip(),
            resume="allow",
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class _Progress:
    """Step, loss, rewards, tokens/s, memory and time left: tqdm's bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, start: int, stream: TextIO):
        self.stream = stream
        self._terminal = stream.isatty()
        self._total, self._start, self._began, self._shown = total, start, time.monotonic(), -math.inf
        self._bar = tqdm(
            total=total, initial=start, file=stream, disable=not self._terminal, unit="step", dynamic_ncols=True
        )

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        text = summary(metrics)
        if self._terminal:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown < PLAIN_SECONDS and step < self._total:
            return
        self._shown = now
        done = step - self._start
        left = tqdm.format_interval((now - self._began) / done * (self._total - step)) if done > 0 else "?"
        print(f"step {step}/{self._total}, {text}, {left} left", file=self.stream, flush=True)

    def close(self) -> None:
        self._bar.close()


def summary(metrics: Mapping[str, float]) -> str:
    """The metrics of one step in one line; what is missing is left out."""
    parts = [f"loss {metrics['loss']:.4g}"] if "loss" in metrics else []
    rewards = [f"{metrics[key]:.4g}" for key in ("rewards/chosen", "rewards/rejected") if key in metrics]
    if rewards:
        parts.append(f"rewards {'/'.join(rewards)}")
    if "rewards/accuracies" in metrics:
        parts.append(f"accuracy {metrics['rewards/accuracies']:.3f}")
    if "beliefs/js_distance" in metrics:
        parts.append(f"js {metrics['beliefs/js_distance']:.3f}")
    if "time/tokens_per_second" in metrics:
        parts.append(f"{tqdm.format_sizeof(metrics['time/tokens_per_second'])} tokens/s")
    parts.append(f"{tqdm.format_sizeof(_memory_bytes(metrics), 'B', 1024)}")
    return ", ".join(parts)


def _memory_bytes(metrics: Mapping[str, float]) -> float:
    """Peak device memory where the metrics have it, else this process's peak."""
    # ru_maxrss is kilobytes on Linux, bytes on macOS
    scale = 1 if sys.platform == "darwin" else 1024
    return metrics.get("memory/peak_bytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)
