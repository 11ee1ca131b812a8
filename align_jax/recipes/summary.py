"""What is said of a run while it evaluates and when it ends: how far the numbers came, what it took, and what to do next."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tabulate import tabulate

from align_jax.config import Config
from align_jax.cost.compilations import so_far
from align_jax.data.members import holds_rows
from align_jax.evaluation.curves import draw_curves, evaluation_sets
from align_jax.recipes.say import is_part, say_plainly
from align_jax.recipes.warned import read_warnings, warning_lines
from align_jax.terminal import plural, spell_seconds

CURVES = "curves.png"
ENDS = 10  # steps, at most, whose mean loss is said at either end of a run
_IN_LINE = 6  # of the metrics below, those that a line may show
_IN_LINE_EACH = 3  # of every set, where there are several
# The metrics of an evaluation that matter, the most important first, in words.
_WORDS = {
    "eval/loss": "eval loss",
    "eval/beliefs/js_distance": "belief distance",
    "eval/rewards/accuracies": "accuracy",
    "eval/rewards/margins": "margin",
    "eval/kl/reference": "KL to the reference",
    "eval/consistency/accuracy": "consistency",
    # in the table only:
    "eval/beliefs/mass": "mass of the beliefs",
    "eval/rewards/chosen": "reward of the chosen",
    "eval/rewards/rejected": "reward of the rejected",
    "eval/rewards/best_of_n": "best of n is right",
    "eval/logps/chosen": "log-prob of the chosen",
    "eval/text/loss": "loss on texts",
    "eval/text/forgotten": "forgotten of texts",
}
Record = Mapping[str, Any]


class Told:
    """What is said of one start of a run.

    Args:
      config: of the run. clock: () -> seconds.

    Attributes:
      notes: further lines of the summary, such as of what was cut.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.perf_counter):
        self._config, self._clock = config, clock
        self._began, self._before = clock(), so_far()
        self._first: Record | None = None
        self.notes: list[str] = []
        self.evaluations, self.evaluation_seconds = 0, 0.0
        self.best = False

    def measured(self, measure: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
        """The same measure of weights, with the time that it takes among its metrics."""

        def timed(*weights: dict) -> dict[str, float]:
            began = self._clock()
            found = measure(*weights)
            seconds = self._clock() - began
            self.evaluations, self.evaluation_seconds = self.evaluations + 1, self.evaluation_seconds + seconds
            return found | {"time/eval_seconds": seconds}

        return timed

    def resumed(self, history: Sequence[Record]) -> None:
        """An earlier start made these steps: changes are told against its first evaluation."""
        self._first = first_evaluation(history)

    def evaluated(self, step: int, metrics: Record) -> None:
        """Says what an evaluation found."""
        say_plainly(evaluation_line(step, metrics, self._first))
        self._first = self._first or {"step": step, **metrics}

    def end(self, folder: Path, history: Sequence[Record]) -> None:
        """Says how the run went, once it is over or stopped, and draws its curves."""
        picture = self._draw(folder, history)
        if is_part():
            return
        told = [self._took(), *run_lines(history), *warning_lines(read_warnings(folder)), *self.notes]
        lines = [*told, f"folder   {folder}", *([picture] if picture else []), "next"]
        say_plainly("\n".join(f"  {line}" for line in "\n".join(lines).splitlines()))
        say_plainly("\n".join(f"    {line}" for line in next_commands(self._config, folder, self.best)))

    def _took(self) -> str:
        spent = so_far() - self._before
        parts = []
        if spent.seconds >= 0.1:
            cached = f", {spent.cached} more from the cache" if spent.cached else ""
            parts.append(f"{spell_seconds(spent.seconds)} compiling ({plural(spent.compiled, 'program')}{cached})")
        if self.evaluations:
            parts.append(f"{spell_seconds(self.evaluation_seconds)} in {plural(self.evaluations, 'evaluation')}")
        return f"took     {spell_seconds(self._clock() - self._began)}" + (f", of that {' and '.join(parts)}" if parts else "")

    def _draw(self, folder: Path, history: Sequence[Record]) -> str:
        """A line about the picture of the run; empty where there is none to draw."""
        if not self._config.log.plots:
            return ""
        return draw_curves(history, folder / CURVES) if jax.process_index() == 0 else ""


def first_evaluation(history: Iterable[Record]) -> Record | None:
    """The first record that holds an evaluation."""
    return next((record for record in history if any(name.startswith("eval/") for name in record)), None)


def evaluation_line(step: int, metrics: Record, first: Record | None) -> str:
    """The metrics of an evaluation that matter, beside those of the first one."""
    names = _in_line(metrics) or [name for name in metrics if name.startswith("eval/") and _finite(metrics[name])][:_IN_LINE]
    when = f" {_when(first)}" if first else ""
    parts: dict[str, list[str]] = {}
    for name in names:
        before = f" ({number(first[name])}{when})" if first and _finite(first.get(name)) else ""
        when = "" if before else when  # said once
        of, _, words = _words(name).rpartition(": ")
        parts.setdefault(of, []).append(f"{words} {number(metrics[name])}{before}")
    told = [(f"{of}: " if of else "") + ", ".join(found) for of, found in parts.items()]
    return f"step {step}: {'; '.join(told)}" + (", before training" if not step else "")


def run_lines(history: Sequence[Record]) -> list[str]:
    """How loss and evaluation changed over a run; none where nothing was recorded."""
    lines = [loss_line(history)]
    evaluations = [record for record in history if any(name.startswith("eval/") for name in record)]
    if len(evaluations) > 1:
        lines.append(evaluation_table(evaluations[0], evaluations[-1]))
    return [line for line in lines if line]


def loss_line(history: Sequence[Record]) -> str:
    """The loss at both ends of a run, each a mean over a few steps; empty where there is none."""
    losses = [record["loss"] for record in history if _finite(record.get("loss"))]
    if not losses:
        return ""
    count = max(1, min(ENDS, len(losses) // 4))
    first, last = (sum(part) / len(part) for part in (losses[:count], losses[-count:]))
    of = f"means of the first and the last {count} logged steps" if count > 1 else "the first and the last logged step"
    return f"loss     {number(first)} -> {number(last)} ({of})"


def evaluation_table(first: Record, last: Record) -> str:
    """An evaluation beside the first one, a row per metric."""
    rows = []
    for name in _of_sets(last, list(_WORDS)):
        if _finite(first.get(name)) and _finite(last.get(name)):
            change = number(last[name] - first[name])
            rows.append([_words(name), number(first[name]), number(last[name]), change if change[0] == "-" else f"+{change}"])
    if not rows:
        return ""
    headers = ["", _when(first), f"at step {last['step']}", "change"]
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", "right", "right", "right"))


def rounds_table(lines: Sequence[Record]) -> str:
    """On-policy rounds, a row each: reward on held-out prompts with its interval, what was gained, and how far the model went.

    Args:
      lines: of rounds.jsonl.
    """
    further = {"gold": "gold reward [95%]", "js_distance": "belief distance [95%]"}
    further = {name: head for name, head in further.items() if any(f"eval/{name}" in line for line in lines)}
    rows = [
        [line["round"] or "start", with_interval(line, "reward"), with_interval(line, "gain") if line["round"] else "",
         *(with_interval(line, name) if f"eval/{name}" in line else "" for name in further),
         f"{line['eval/kl']:.3g}", f"{line['eval/length']:.0f}"]
        for line in lines
    ]  # fmt: skip
    headers = ["round", "held-out reward [95%]", "gain over the start", *further.values(), "KL to the start", "tokens"]
    return tabulate(rows, headers=headers, disable_numparse=True)


def with_interval(line: Record, name: str) -> str:
    """A mean with the bounds of its interval."""
    return f"{number(line[f'eval/{name}'])} [{number(line[f'eval/{name}_low'])}, {number(line[f'eval/{name}_high'])}]"


def next_commands(config: Config, folder: Path, best: bool = False) -> list[str]:
    """What one does with a trained run, as commands; `best`: whether its best checkpoint is another one than its newest."""
    run = shlex.quote(str(folder))
    if holds_rows(config.data.train):  # in Python
        return [f'align_jax.export("{folder}", "{folder / "export"}"' + (', step="best")' if best else ")")]
    readable = config.data.eval is not None and not holds_rows(config.data.eval)
    commands = [f"align-jax evaluate {run}"] if readable else []
    if config.head == "lm_head":
        commands.append(f'align-jax generate {run} --prompt "Once upon a time"')
    return [*commands, f"align-jax export {run} {shlex.quote(str(folder / 'export'))}" + (" --step best" if best else "")]


def number(value: float) -> str:
    """A number for people: three decimals, fewer where it is large; no minus zero."""
    text = f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _when(record: Record) -> str:
    return f"at step {record['step']}" if record["step"] else "before training"


def _in_line(metrics: Record) -> list[str]:
    """The metrics that a line about an evaluation shows."""
    sets = evaluation_sets([metrics])
    shown = list(_WORDS)[:_IN_LINE]
    found = [name for name in _of_sets(metrics, shown) if _finite(metrics.get(name))]
    if sets:
        of = {of: [name for name in found if name.startswith(f"eval/{of}/")][:_IN_LINE_EACH] for of in sets}
        found = [name for names in of.values() for name in names]
    return found + ["eval/text/loss"] * _finite(metrics.get("eval/text/loss"))


def _of_sets(metrics: Record, names: Sequence[str]) -> list[str]:
    """These metrics of every evaluation set, set by set, and those of texts."""
    texts = [name for name in names if name.startswith("eval/text/")]
    of_sets = [name.removeprefix("eval/") for name in names if name not in texts]
    sets = [f"eval/{of}/" for of in evaluation_sets([metrics])] or ["eval/"]
    return [*(of + name for of in sets for name in of_sets), *texts]


def _words(name: str) -> str:
    if name in _WORDS:
        return _WORDS[name]
    of, _, rest = name.removeprefix("eval/").partition("/")
    known = _WORDS.get(f"eval/{rest}")
    return f"{of}: {known}" if known else name.removeprefix("eval/")


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
