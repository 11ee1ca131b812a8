"""Failure signatures of a run: watched while it trains, said once each, and kept in its folder."""

from __future__ import annotations

import collections
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from align_jax.recipes.say import say
from align_jax.training.callbacks import Callback
from align_jax.training.signatures import SETTLED, SIGNATURES, WINDOW, Signature

FILE = "signatures.jsonl"
DOCS = "docs/signatures.md"


class WatchSignatures(Callback):
    """Warns of failure signatures in the metrics of steps (the median of the last ten) and of evaluations.

    Each is said once in a run, however often that is resumed, and becomes a line of `signatures.jsonl`: name, step, value,
    limit, what it means and what to try.

    Args:
      folder: of the run. steps: of the whole run. warmup: steps of rising learning rate, after which it is judged.
      pulled: whether the objective holds the model at a reference.
      history: records of earlier starts. Where there are none, what the folder holds is not this run's, and goes.
    """

    def __init__(
        self, folder: Path, steps: int, *, warmup: int = 0, pulled: bool = True, history: Iterable[Mapping[str, Any]] = ()
    ):
        self._file, self._steps, self._warmup = folder / FILE, steps, warmup
        history = [record for record in history if record["step"]]
        if not history and jax.process_index() == 0:
            self._file.unlink(missing_ok=True)
        self._said = {warning["name"] for warning in read_warnings(folder)}
        self._watched = [s for s in SIGNATURES if pulled or not s.pulled]
        self._recent = {s.name: collections.deque(maxlen=WINDOW) for s in self._watched}
        for record in history:
            self._judged(record["step"], record)

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Looks at the metrics of a step."""
        for signature, value in self._judged(step, metrics):
            if signature.name not in self._said:
                self._said.add(signature.name)
                self._warn(signature, step, value)

    def _judged(self, step: int, metrics: Mapping[str, Any]) -> list[tuple[Signature, float]]:
        """Takes the metrics of a step in; the signatures that show, with their numbers."""
        found = []
        for signature in self._watched:
            if step <= max(self._warmup, SETTLED * self._steps):
                continue
            value = signature.value(metrics, "eval/") if signature.evaluations else math.nan
            recent = self._recent[signature.name]
            if signature.steps and not math.isnan(of_step := signature.value(metrics)):
                recent.append(of_step)
                if len(recent) == WINDOW and not signature.is_bad(value):
                    value = statistics.median(recent)
            if signature.is_bad(value) and step > signature.part * self._steps:
                found.append((signature, value))
        return found

    def _warn(self, signature: Signature, step: int, value: float) -> None:
        warning = {
            "name": signature.name,
            "step": step,
            "value": value,
            "limit": signature.limit,
            "what": f"{signature.means} ({signature.words})",
            "try": signature.remedy,
        }
        if jax.process_index() == 0:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(json.dumps(warning) + "\n")
        say(warning_line(warning))


def read_warnings(folder: Path) -> list[dict[str, Any]]:
    """The warnings of a run, without a last line that a kill cut short."""
    file = folder / FILE
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1] if line]


def warning_line(warning: Mapping[str, Any]) -> str:
    """A warning for people."""
    side = "above" if warning["value"] > warning["limit"] else "below"
    return (
        f"warning: {warning['name']} at step {warning['step']}: {warning['what']}: {warning['value']:.3g}, {side} "
        f"{warning['limit']:g}. Try: {warning['try']} ({DOCS})"
    )


def warning_lines(warnings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The warnings of a run at its end, a line each."""
    return [
        f"warning  {w['name']} {w['value']:.3g} at step {w['step']} (limit {w['limit']:g}): {w['what'].partition(' (')[0]}"
        for w in warnings
    ]
