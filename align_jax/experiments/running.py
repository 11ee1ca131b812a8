"""Runs an experiment: its cells one after the other, each kept when it is measured; then the verdict and the picture.

OUT/cells/NAME.json    a measured cell, which is not measured again
OUT/work/              runs and data of the experiment, removed at its end
OUT/result.json        all of it, with the verdict; OUT/plot.png
OUT/../common/         what several experiments share, such as base models
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.errors import UserError, optional
from align_jax.experiments import module_of
from align_jax.experiments.claim import Cell, Experiment, Measurement, Options, Verdict
from align_jax.experiments.models import model_folder
from align_jax.experiments.work import Workplace, data_root
from align_jax.files import write_whole
from align_jax.lock import held
from align_jax.terminal import plural, spell_seconds
from align_jax.version import __version__

RESULT, PLOT = "result.json", "plot.png"
_NOT_MEASURING = ("__init__.py", "beliefs_picture.py", "command.py", "page.py", "plots.py", "quickstart.py", "running.py")
OUT = Path("runs/experiments")


def load(name: str) -> Experiment:
    """The experiment of a claim."""
    return importlib.import_module(module_of(name)).EXPERIMENT


def folder_of(name: str, options: Options, out: Path = OUT) -> Path:
    """Where results go, by default: `runs/experiments/NAME`, with the model and `quick` where they are not the usual ones."""
    model = "" if options.model == "tiny" else f"-{options.model_name}"
    return out / f"{name}{model}{'-quick' if options.quick else ''}"


def check(name: str, experiment: Experiment, options: Options) -> None:
    """UserError where the experiment cannot be run with these options here."""
    if options.model != "tiny" and not experiment.models:
        raise UserError(f"--model: {name} runs on a world, a table or a model of its own; leave it out")
    known = experiment.models
    if options.model in ("tiny", "smollm2") and known and options.model not in known:
        raise UserError(f"--model: {name} runs on {' or '.join(known)}, not on {options.model}")
    needed = (*experiment.data, *(["stories260k"] if "tiny" in known and options.model == "tiny" else []))
    for folder in dict.fromkeys(needed):
        if not (data_root() / folder).is_dir():
            raise UserError(f"ALIGN_JAX_DATA: {name} needs the folder {folder}, which {data_root()} does not have")
    if known:
        model_folder(options.model)
    optional("matplotlib", "plots", "the picture of an experiment")


def run(name: str, options: Options, folder: Path, tell: Callable[[str], None] = print, again: bool = False) -> Verdict:
    """Runs one claim, or what is left of it.

    Args:
      name: such as `gdpo-calibration`. folder: of the results. tell: takes a line for the user.
      again: measure everything anew.

    Returns:
      The verdict, which `folder/result.json` has too.

    Raises:
      UserError: it cannot be run here. JobStopped: it was told to stop.
    """
    experiment = load(name)
    check(name, experiment, options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {folder} cannot be made: {error.strerror}") from error
    with held(folder / "lock", f"--out: {folder}", "wait for it, or give another --out"):
        return _run(name, experiment, options, folder, tell, again)


def _run(
    name: str, experiment: Experiment, options: Options, folder: Path, tell: Callable[[str], None], again: bool
) -> Verdict:
    cells = experiment.cells(options)
    tell(f"{name}: {experiment.claim}")
    tell(f"source: {experiment.source}")
    tell(f"criterion: {experiment.criterion}")
    measured, began, fresh, code = [], time.perf_counter(), 0, _code(experiment)
    if again:
        shutil.rmtree(folder / "work", ignore_errors=True)
        for cell in cells:
            _file_of(folder, cell).unlink(missing_ok=True)
    for number, cell in enumerate(cells, 1):
        found = _kept(folder, cell, tell)
        if found is None:
            left = _left(began, fresh, len(cells) - number + 1)
            tell(f"{number} of {len(cells)}: {cell.name}{left}")
            found = _measure(experiment, cell, options, folder)
            fresh += 1
        measured.append(found)
    if fresh < len(cells):
        tell(f"{plural(len(cells) - fresh, 'cell')} had been measured before")
    if older := sum(one.code != code for one in measured):
        tell(f"{older} of {len(cells)} cells are from another version of what measures them; --again measures them anew")
    verdict = experiment.conclude(measured, options)
    _write(folder, name, experiment, options, measured, verdict)
    shutil.rmtree(folder / "work", ignore_errors=True)
    tell(f"wrote {folder / RESULT} and {folder / PLOT}")
    tell(f"{name}: {verdict.word}: {verdict.line}" + (" (quick run)" if options.quick else ""))
    return verdict


def _file_of(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.json"


def _kept(folder: Path, cell: Cell, tell: Callable[[str], None]) -> Measurement | None:
    file = _file_of(folder, cell)
    if not file.exists():
        return None
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        found = Measurement(cell, stored["values"], stored["seconds"], stored.get("cpu", 0.0), stored.get("code", ""))
        settings = stored["settings"]
    except (ValueError, KeyError, TypeError):
        tell(f"{file} is damaged: it is measured anew")
        return None
    if settings != json.loads(json.dumps(cell.settings)):
        tell(f"{file} was measured with other settings: it is measured anew")
        return None
    return found


def _measure(experiment: Experiment, cell: Cell, options: Options, folder: Path) -> Measurement:
    began, before, own = time.perf_counter(), time.process_time(), folder / "work" / "cells" / cell.name
    own.mkdir(parents=True, exist_ok=True)
    shared, common = folder / "work" / "shared", folder.parent / "common"
    for place in (shared, common):
        place.mkdir(parents=True, exist_ok=True)
    values = experiment.measure(cell, Workplace(own, shared, common, options))
    found = Measurement(cell, plain(values), time.perf_counter() - began, time.process_time() - before, _code(experiment))
    (folder / "cells").mkdir(exist_ok=True)
    stored = {"settings": cell.settings, "values": found.values, "seconds": found.seconds, "cpu": found.cpu, "code": found.code}
    write_whole(_file_of(folder, cell), json.dumps(stored, indent=1) + "\n")
    shutil.rmtree(own, ignore_errors=True)
    return found


def _code(experiment: Experiment) -> str:
    """A hash of the files that say how cells are measured: the experiment's own, and those that several share."""
    own = inspect.getsourcefile(experiment.measure)
    files = [*([Path(own)] if own else []), *sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.name not in _NOT_MEASURING)).hexdigest()[:16]


def _left(began: float, done: int, left: int) -> str:
    if not done:
        return ""
    return f" (about {spell_seconds((time.perf_counter() - began) / done * left)} left)"


def _write(folder, name, experiment, options, measured: list[Measurement], verdict: Verdict) -> None:
    """result.json and plot.png."""
    result = {
        "experiment": name,
        **{key: getattr(experiment, key) for key in ("number", "claim", "source", "criterion", "kind")},
        "options": dataclasses.asdict(options),
        "verdict": verdict.word,
        "line": verdict.line,
        "figures": {key: dataclasses.asdict(found) for key, found in verdict.figures.items()},
        "seconds": sum(one.seconds for one in measured),
        "cpu_seconds": sum(one.cpu for one in measured),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_device()}",
        "versions": {"align_jax": __version__, "jax": _version_of_jax(), "python": platform.python_version()},
        "cells": [{"name": one.cell.name, "settings": one.cell.settings, "values": one.values} for one in measured],
    }
    write_whole(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    experiment.draw(measured, options).savefig(folder / PLOT, dpi=110)


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays become lists, and numbers six significant digits."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(np.asarray(value).tolist())
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _device() -> str:
    import jax

    return jax.default_backend()


def _version_of_jax() -> str:
    import jax

    return jax.__version__
