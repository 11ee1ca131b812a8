"""`align-jax experiment NAME|all [--quick] [--seeds N] [--model tiny|smollm2|PATH] [--out FOLDER] [--again]`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align_jax.errors import UserError
from align_jax.experiments import ALL, claims
from align_jax.experiments.claim import Options
from align_jax.experiments.running import OUT, folder_of, load, run
from align_jax.experiments.work import JobStopped
from align_jax.parallel.stop import STOPPED, interruptible
from align_jax.recipes.say import part_of_a_job

KEPT = "stopped; what was measured is kept, and the same command goes on"


def run_command(name: str, argv: Sequence[str]) -> int:
    """Runs one claim, or all of them; 0 where it came to a verdict, whatever it is."""
    given = _parsed(name, argv)
    options, again = Options(given.quick, model=given.model), given.again
    options = dataclasses.replace(options, seeds=given.seeds or options.usual_seeds)
    with interruptible(), part_of_a_job(), _saying_so_when_stopped():
        try:
            if name == ALL:
                return _all(options, given.out, again)
            run(name, options, folder_of(name, options, given.out), _tell, again)
        except JobStopped:
            _tell(KEPT)
            return STOPPED
        return 0


@contextlib.contextmanager
def _saying_so_when_stopped() -> Iterator[None]:
    """Within it SIGTERM ends the process with a word; a training in it hears SIGTERM itself, and saves first."""

    def stop(*_: Any) -> None:
        _tell(KEPT)
        raise SystemExit(STOPPED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parsed(name: str, argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog=f"align-jax experiment {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=_count)  # Options.usual_seeds
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--again", action="store_true")
    return parser.parse_args(list(argv))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        options = "[--quick] [--seeds N] [--model tiny|smollm2|PATH] [--out FOLDER] [--again]"
        raise UserError(f"{message}; usage: {self.prog} {options}")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seeds, 1 or more")
    return int(text)


def _all(options: Options, out: Path, again: bool) -> int:
    """Every claim that runs on this model; one that fails to run does not keep the others from theirs."""
    lines, broken = [], 0
    for name in claims():
        experiment = load(name)
        if options.model != "tiny" and options.model not in experiment.models:
            continue
        try:
            verdict = run(name, options, folder_of(name, options, out), _tell, again)
            lines.append(f"{name:<24} {verdict.word:<8} {verdict.line}")
        except UserError as error:
            broken += 1
            lines.append(f"{name:<24} not run  {error}")
        _tell("")
    print("\n".join(lines))
    return 1 if broken else 0


def _tell(line: str) -> None:
    print(line, flush=True)
