"""`metrics.jsonl`: one JSON object per step, on disk at once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TextIO

from align_jax.errors import UserError
from align_jax.parsing import json_of
from align_jax.terminal import PREFIX, write_line
from align_jax.training.logs.sink import Context, Sink

FILE = "metrics.jsonl"
# The only metrics that differ between a run and the same run killed and resumed.
TIMING_PREFIXES = ("time/", "memory/")


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
            record = json_of(line)
            record["step"] + 0
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}:{number}: not a line of metrics: {line[:80]!r}; mend or remove it") from error
        records.append(record)
    return records


class MetricsFile(Sink):
    """Appends to `metrics.jsonl` and flushes line by line, so that a killed process loses nothing it logged.

    A value that is NaN or infinite is written as `null`, since JSON has no such numbers. Resumed, lines of later steps are
    dropped, so that the file equals an uninterrupted one (but for `TIMING_PREFIXES`). What is measured of the step itself,
    whose evaluation was stopped, becomes part of its line.
    """

    name: ClassVar[str] = "jsonl"

    def __init__(self, context: Context):
        super().__init__(context)
        path, resume_step = context.run_dir / FILE, context.resume_step
        kept = []
        if resume_step is not None and path.exists():
            kept = [record for record in read_metrics(path) if record["step"] <= resume_step]
        self._kept = kept if kept and kept[-1]["step"] == resume_step else []
        self._file = _rewritten(path, kept)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        before, self._kept = self._kept, []
        if before and step == before[-1]["step"]:
            self._file.close()
            self._file = _rewritten(self.context.run_dir / FILE, [*before[:-1], {**before[-1], **finite}])
            return
        if os.fstat(self._file.fileno()).st_nlink == 0:  # or all further lines would go where nobody finds them
            self._file.close()
            path = self.context.run_dir / FILE
            self._file = path.open("a", encoding="utf-8")
            write_line(f"{PREFIX}{path} was removed while it was in use: it begins anew at step {step}")
        self._file.write(f"{json.dumps({'step': step, **finite}, allow_nan=False)}\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _rewritten(path: Path, records: list[dict[str, Any]]) -> TextIO:
    """The file with these lines, open for more; by way of another file, so that a kill loses no line."""
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    os.replace(temporary, path)
    return path.open("a", encoding="utf-8")
