"""Checkpoints of a run: weights, optimizer, step, data iterator and config together, written by Orbax.

A checkpoint is a folder named by its step. Orbax writes it under a temporary name and renames it when it is complete,
so that a killed process leaves the last complete checkpoint as the newest. Tensors are stored under dotted names
(`trainable.layers.q`), which is what errors show, each with a checksum, since the storage does not notice a flipped bit; and
each file has one in `manifest.json`, which is written last and read first.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import orbax.checkpoint as ocp

from align_jax.errors import UserError
from align_jax.models.finite import spelled
from align_jax.parallel.processes import decided, from_first
from align_jax.training.kept import KeepLatestAndBest
from align_jax.training.manifest import write_manifest
from align_jax.training.orbax_logs import tracebacks_left_out, warnings_of_reading_left_out
from align_jax.training.read_checkpoint import EXTRA, STATE, CheckpointReader, first_line
from align_jax.training.tensors import flatten_names, sums_and_bad

_logger = logging.getLogger(__name__)


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint could not be read, and an older one is used instead."""


class _AskingNobody(ocp.CheckpointManager):
    """A manager that leaves the agreement on when to stop to `align_jax.parallel.stop`."""

    def reached_preemption(self, step: int) -> bool:
        # It would ask JAX by the number of the step in each save, and a SIGTERM that came then be agreed on for a number that
        # the loop's own questions are long past: nobody would ever stop.
        return False


class Checkpointer:
    """Saves and restores the checkpoints of one folder.

    Args:
      directory: the folder; made if missing (unless `read_only`).
      keep: how many of the newest checkpoints stay.
      best_metric: also keep the checkpoint with the best value of this metric; None keeps only the newest.
      best_mode: whether `min` or `max` is best.
      every: steps that are multiples of it stay rather than others; None: the newest.
      forever: steps that are multiples of it stay whatever else goes; None: none do.
      read_only: neither make, clean nor write anything: safe on the folder of a run that is training.

    Raises:
      UserError: `keep` below 1, an unknown `best_mode`, or a `read_only` folder that does not exist.
    """

    def __init__(
        self,
        directory: str | Path,
        keep: int = 2,
        best_metric: str | None = None,
        best_mode: Literal["min", "max"] = "min",
        *,
        every: int | None = None,
        forever: int | None = None,
        read_only: bool = False,
    ):
        if keep < 1:
            raise UserError(f"checkpoint.keep: {keep!r} must be at least 1")
        if best_mode not in ("min", "max"):
            raise UserError(f"checkpoint.best_mode: {best_mode!r} is neither 'min' nor 'max'")
        self.directory = Path(directory).absolute()
        if read_only and not self.directory.is_dir():
            raise UserError(f"no checkpoints: {self.directory} does not exist")
        self._best_metric = best_metric
        self._damaged: dict[int, str] = {}
        self._policy = KeepLatestAndBest(keep, best_mode, {}, every, forever)
        self._saving: int | None = None
        self._bytes = 0
        self._quiet = contextlib.ExitStack()
        # Compressed, float32 weights and moments take 8 % less, and half as long again to write.
        handler = ocp.PyTreeCheckpointHandler(use_compression=False)
        self._handlers = {STATE: handler, EXTRA: ocp.JsonCheckpointHandler()}
        try:
            with warnings_of_reading_left_out():
                self._manager = _AskingNobody(
                    self.directory,
                    options=ocp.CheckpointManagerOptions(
                        preservation_policy=self._policy,
                        create=not read_only,
                        read_only=read_only,
                        cleanup_tmp_directories=not read_only,
                        # our own metrics are in the JSON, so that opening a folder never fails on a damaged checkpoint
                        lightweight_initialize=True,
                        async_options=ocp.AsyncOptions(post_finalization_callback=self._list_files),
                    ),
                    item_handlers=self._handlers,
                )
        except OSError as error:
            raise UserError(f"cannot open the checkpoint folder {self.directory}: {error.strerror or error}") from error
        self._reader = CheckpointReader(self._manager, self._handlers)
        self._quiet.enter_context(tracebacks_left_out())
        for step in self.steps():
            self._remember_score(step)
        if best_metric is not None and not read_only:  # or each process would keep and delete others
            scores = decided("the scores of checkpoints", sorted(self._policy.scores.items()), lambda found: found[0])
            self._policy.scores = {step: score for step, score in scores}

    def _remember_score(self, step: int) -> None:
        """Reads the metric of a checkpoint on disk; one that cannot be read is never the best."""
        if self._best_metric is None:
            return
        try:
            items = ocp.args.Composite(**{EXTRA: ocp.args.JsonRestore()})
            metrics = self._manager.restore(step, args=items)[EXTRA]["metrics"]
        except Exception as error:  # Orbax raises whatever its storage does
            _logger.warning("no metrics in checkpoint %s: %s", self.directory / str(step), first_line(error))
            return
        self._score(step, metrics)

    def _score(self, step: int, metrics: Mapping[str, Any]) -> None:
        value = metrics.get(self._best_metric)
        if isinstance(value, (int, float)) and math.isfinite(value):
            self._policy.scores[step] = float(value)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints on disk, oldest first, without those found damaged."""
        return sorted(step for step in ocp.utils.checkpoint_steps(self.directory) if step not in self._damaged)

    def agreed_steps(self) -> list[int]:
        """`steps()`, as far as all processes have them on their disks; all must call."""
        return decided("the list of checkpoints", self.steps(), lambda found: sorted(set.intersection(*map(set, found))))

    def latest_step(self) -> int | None:
        """The newest step of `steps()`, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step of the checkpoint with the best `best_metric`, or None where none has it."""
        return self._policy.best(self.steps())

    def names(self, step: int) -> list[str]:
        """The dotted names of the tensors that a checkpoint on disk holds."""
        return list(self._manager.item_metadata(step)[STATE].tree)

    def save(self, step: int, state: Any, extra: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing a checkpoint; returns once the arrays are copied, so that the caller may donate them.

        Args:
          step: optimizer steps done; not saved before.
          state: a pytree of arrays, sharded or not.
          extra: JSON values (data iterator, config, ...), written beside the arrays; the first process's are kept.
          metrics: values at this step, `best_metric` among them where it was measured.

        Raises:
          UserError: the previous write failed (disk full, ...), or this one did at once; earlier ones are intact.
          ValueError: `extra` or `metrics` is not JSON.
        """
        self.wait()
        metrics = {name: _json_number(value) for name, value in (metrics or {}).items()}
        arrays, _ = flatten_names(state)
        sums, bad = sums_and_bad(arrays)
        if bad:
            raise UserError(
                f"{spelled(bad)} of the weights after step {step} hold NaN or infinite values: no checkpoint is made of them; "
                f"{self._safe()}; lower optimizer.learning_rate"
            )
        document = {"step": step, "extra": dict(extra), "metrics": metrics, "checksums": sums}
        try:
            json.dumps(document, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"checkpoint of step {step}: extra and metrics must be JSON: {error}") from error
        self._set_damaged_aside()
        if step in self.steps():
            raise UserError(f"a checkpoint of step {step} already exists in {self.directory}; choose another run.dir")
        if self._best_metric is not None:
            self._score(step, metrics)
        self._saving, self._bytes = step, sum(array.nbytes for array in arrays.values())
        items = ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(arrays), EXTRA: ocp.args.JsonSave(document)})
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:  # Orbax raises whatever its storage does
            raise self._failed_write(error) from error

    def _list_files(self) -> None:
        """Before the folder gets its name: Orbax calls it on the first process, in the thread that writes."""
        step = self._saving
        for folder in (self.directory / str(step), *self.directory.glob(f"{step}.orbax-checkpoint-tmp*")):
            if folder.is_dir():
                write_manifest(folder)

    def _set_damaged_aside(self) -> None:
        """Renames checkpoints found damaged, so that their steps can be saved again; nothing is deleted."""
        if not self._damaged:
            return
        # All wait: the steps are there until the first process has renamed them.
        from_first(f"setting damaged checkpoints in {self.directory} aside", self._rename_damaged)
        for step in self._damaged:
            self._policy.scores.pop(step, None)
        self._damaged = {}
        self._manager.reload()

    def _rename_damaged(self) -> None:
        for step in self._damaged:
            folder = self.directory / str(step)
            if folder.exists():
                target = self.directory / f"damaged-{step}"
                number = 1
                while target.exists():
                    number += 1
                    target = self.directory / f"damaged-{step}-{number}"
                folder.rename(target)
                _logger.warning("moved the damaged checkpoint %s to %s", folder, target)

    def _failed_write(self, error: Exception) -> UserError:
        step, self._saving = self._saving, None
        if step is not None:
            self._policy.scores.pop(step, None)
        with contextlib.suppress(Exception):
            self._manager.reload()
        return UserError(
            f"writing the checkpoint of step {step} to {self.directory} failed: {self._reason(error)}; {self._safe()}; "
            "check the disk's free space and permissions, then run the same command to resume"
        )

    def _reason(self, error: Exception) -> str:
        """What the system said, without the storage's account of where it was; of a full disk, how full it is."""
        code = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(code[1]) if code else getattr(error, "errno", None)
        if number is None:
            return first_line(error)
        if number not in (errno.ENOSPC, errno.EDQUOT):
            return os.strerror(number)
        free = shutil.disk_usage(self.directory).free
        return f"{os.strerror(number)} ({free / 1e9:.3g} GB are free, a checkpoint takes {self._bytes / 1e9:.3g} GB)"

    def _safe(self) -> str:
        left = self.steps()
        return f"the checkpoints of steps {left} are intact" if left else "there is no earlier checkpoint"

    def wait(self) -> None:
        """Blocks until the last save is complete.

        Raises:
          UserError: that save failed; earlier checkpoints are intact.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:  # Orbax raises whatever its storage does
            raise self._failed_write(error) from error
        self._saving = None

    def restore(
        self, abstract_state: Any, step: int | None = None, *, subset: bool = False
    ) -> tuple[Any, dict[str, Any]] | None:
        """Reads a checkpoint into the given shapes, dtypes and shardings (any mesh).

        Args:
          abstract_state: a pytree of arrays or `jax.ShapeDtypeStruct` with shardings.
          step: which checkpoint; None is the newest readable one.
          subset: read only the tensors named in `abstract_state` (say `{"trainable": ...}`), converted to its dtypes.

        Returns:
          `(state, extra)`, or None when the folder has no checkpoint.

        Warns:
          DamagedCheckpointWarning: the newest checkpoint could not be read; names it and why.

        Raises:
          UserError: the checkpoint is of another model or optimizer (names the first tensor that differs), `step` does
            not exist or is damaged, or no checkpoint can be read.
        """
        self.wait()
        steps = self.agreed_steps()
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.directory}; there are {steps or 'none'}")
        for candidate in self._newest_first() if step is None else [step]:
            folder = self.directory / str(candidate)
            found, reason = self._reader.read(candidate, abstract_state, subset)
            if not reason:
                return found
            if step is not None:
                raise UserError(f"checkpoint {folder} is damaged: {reason}; choose one of {steps}")
            self._damaged[candidate] = reason
            self._policy.scores.pop(candidate, None)
            message = f"checkpoint {folder} is damaged and not used: {reason}"
            warnings.warn(message, DamagedCheckpointWarning, stacklevel=2)
        if steps:
            reason = self._damaged.get(steps[-1], "it is gone")
            raise UserError(f"none of the checkpoints {steps} in {self.directory} can be read: {reason}")
        return None

    def _newest_first(self) -> Iterator[int]:
        """The steps to try, the newest that is there each time: a run that trains may replace the one that is read."""
        while steps := self.agreed_steps():
            yield steps[-1]

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the last save and ends Orbax's threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._manager.close()
            self._quiet.close()


def _json_number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
