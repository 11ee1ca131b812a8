"""What checkpoints a run has, and whether they are whole; reads files alone, and needs no JAX."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align_jax.errors import UserError
from align_jax.terminal import spell_seconds
from align_jax.training.manifest import DamagedFileError, check_files, size_of

WHOLE, UNLISTED, DAMAGED, UNFINISHED = "whole", "unlisted", "damaged", "unfinished"
_TEMPORARY = ".orbax-checkpoint-tmp"


@dataclasses.dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint on disk.

    Attributes:
      round: of on-policy rounds; None in an ordinary run. step: optimizer steps done. path: its folder.
      age_s: seconds since it was written. bytes: of all its files.
      state: `whole`: all files are what was written; `unlisted`: of an earlier version, which wrote no list of files;
        `damaged`; or `unfinished`: a save that was cut off. why: it is damaged, names the file.
      run: the id of the run that wrote it. metrics: of its step.
    """

    round: int | None
    step: int
    path: str
    age_s: float
    bytes: int
    state: str
    why: str = ""
    run: str | None = None
    metrics: dict[str, float | None] = dataclasses.field(default_factory=dict)


def checkpoints(run_dir: str | Path) -> list[StoredCheckpoint]:
    """The checkpoints in the folder of a run, oldest step first; every file of them is read.

    Raises:
      UserError: the folder has none.
    """
    root = Path(run_dir)
    rounds = sorted((p for p in (root / "rounds").glob("[0-9]*") if p.name.isdigit()), key=lambda path: int(path.name))
    found = [one for number, folder in [(None, root), *((int(p.name), p) for p in rounds)] for one in _of(number, folder)]
    if not found:
        raise UserError(f"{root}: {'no checkpoint yet' if root.is_dir() else 'no such folder'}")
    return found


def newest_is_whole(found: list[StoredCheckpoint]) -> bool:
    """Whether a run goes on from its last save; a save that was cut off does not count."""
    finished = [one for one in found if one.state != UNFINISHED]
    return bool(finished) and finished[-1].state in (WHOLE, UNLISTED)


def _of(number: int | None, run: Path) -> Iterator[StoredCheckpoint]:
    named = [(match, path) for path in (run / "checkpoints").glob("*") if (match := _NAME.fullmatch(path.name))]
    for match, path in sorted(named, key=lambda one: (int(one[0]["step"]), one[1].name)):
        state, why = (UNFINISHED, "") if match["temporary"] else _state(path)
        document = {} if match["temporary"] else _document(path)
        yield StoredCheckpoint(
            number,
            int(match["step"]),
            str(path),
            round(time.time() - path.stat().st_mtime, 1),
            size_of(path),
            state,
            why,
            (document.get("extra") or {}).get("run"),
            document.get("metrics") or {},
        )


_NAME = re.compile(rf"(?:damaged-)?(?P<step>\d+)(?:-\d+)?(?P<temporary>{re.escape(_TEMPORARY)}.*)?")


def _state(folder: Path) -> tuple[str, str]:
    try:
        return (WHOLE if check_files(folder) else UNLISTED), ""
    except DamagedFileError as error:
        return DAMAGED, str(error)
    except OSError as error:
        return DAMAGED, f"{error.filename}: {error.strerror}"


def _document(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "extra" / "metadata").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def table(found: list[StoredCheckpoint]) -> str:
    """The checkpoints, a line each: the loss, and what was measured on `data.eval`."""
    rounds = any(one.round is not None for one in found)
    head = [*(["round"] if rounds else []), "step", "age", "size", "state", "metrics"]
    lines = [head, *(_line(one, rounds) for one in found)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    return "\n".join("  ".join([*(text.rjust(n) for text, n in zip(line, widths, strict=False)), line[-1]]) for line in lines)


def _line(one: StoredCheckpoint, rounds: bool) -> list[str]:
    shown = [name for name in one.metrics if name == "loss" or name in ("eval/loss", "eval/reward", "eval/accuracy")]
    metrics = ", ".join(f"{name} {one.metrics[name]:.4g}" for name in shown if one.metrics[name] is not None)
    number = ["" if one.round is None else str(one.round)] if rounds else []
    said = "; ".join(part for part in (one.why, metrics) if part)
    return [*number, str(one.step), spell_seconds(one.age_s), _spell_bytes(one.bytes), one.state, said]


def _spell_bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
