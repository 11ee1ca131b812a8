"""Evaluation: several models side by side on `data.eval`, as one table with intervals."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from align_jax.config import Config
from align_jax.config.jobs import JOBS
from align_jax.data import DataConfig
from align_jax.errors import MissingPackage, UserError, optional
from align_jax.evaluation import Estimate, target_lines
from align_jax.parallel.stop import listening
from align_jax.recipes.eval_text import eval_text
from align_jax.recipes.evaluated import EvaluationJob, Result, columns_of, evaluate_models, file_name, written_to
from align_jax.recipes.evaluation import eval_sets, judge_of
from align_jax.recipes.memory import memory_explained, of_pass
from align_jax.recipes.models import as_program, model_at, trained_model
from align_jax.recipes.say import say, speaking, watching
from align_jax.recipes.setup import Setup
from align_jax.recipes.source import ModelSource, TrainedModel

REQUIRED = JOBS["evaluate"].requires


def evaluate(config: Config | str | os.PathLike | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Evaluates every model of `evaluate.models`, by default the starting model and the run's newest checkpoint.

    Implicit rewards are relative to the one reference (`reference.path`, by default the starting model), with the config's
    `objective.beta`. Writes `evaluation.json` and the folder `evaluation/` (samples, plots) to `run.dir`; both are there
    after each model, so that a later failure loses none. A report that lacks something names it as `unfinished`, and stands in
    `evaluation.unfinished.json` where there is a whole one of before.

    Args:
      config: what `Config.of` takes, or gives.

    Returns:
      The table, a dict per cell: `model`, `metric`, `value`, and the bounds `low` and `high` of its interval.

    Raises:
      UserError: anything that the user can mend, see the message.
    """
    report = report_of(Config.of(config))
    for problem in report.problems:
        warnings.warn(problem, stacklevel=2)
    return report.rows()


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
      path: of the data. columns: model -> metric -> estimate.
      lines: what was written. problems: why not everything was judged. unjudged: whether a judge failed.
    """

    path: str
    columns: dict[str, dict[str, Estimate]]
    lines: list[str]
    problems: list[str]
    unjudged: bool

    def rows(self) -> list[dict[str, Any]]:
        """The table, a dict per cell."""
        return [
            {"model": model, "metric": metric, "value": found.value, "low": found.low, "high": found.high}
            for model, metrics in self.columns.items()
            for metric, found in metrics.items()
        ]


def report_of(config: Config) -> Report:
    """What `evaluate` does, with what there is to say of it."""
    config.require(*REQUIRED)
    rows, tokens = config.train.groups_per_step, config.generate.rows
    further = f"model.rows_per_chunk (now {config.model.rows_per_chunk})", f"generate.rows, where it samples (now {tokens})"
    explained = memory_explained(lambda: of_pass("train.groups_per_step", rows, *further))
    with speaking(config.log.quiet, config.log.progress), listening(), explained:
        with watching("starting: devices, model and tokenizer"):
            setup = Setup.of(config)
        models = models_of(setup)
        (setup.folder.path / "evaluation").mkdir(parents=True, exist_ok=True)
        with jax.set_mesh(setup.mesh):
            if config.head == "score" and config.evaluate.samples:
                say("a reward model generates nothing: evaluate.samples is not used")
                setup = dataclasses.replace(setup, config=_without_samples(config))
            sets = eval_sets(setup, len(models))
            say_leaks(setup.config, models)
            for data in sets if setup.config.evaluate.samples else ():
                data.check_room("evaluate.samples")
            judge = judge_of(setup, sets) if setup.config.evaluate.samples else None
            job = EvaluationJob(setup, sets, eval_text(setup, len(models)), judge)
            results = []
            try:
                evaluate_models(job, models, results)
            except (KeyboardInterrupt, SystemExit):  # a StoppedPass among them
                if results:
                    file = written_to(setup.folder.path, unfinished=True)
                    say(f"{file} has {', '.join(r.name for r in results)}")
                raise
        lines = _plots(job, results) if config.evaluate.plots and jax.process_index() == 0 else []
    lines += [
        f"{f'{data.name}, ' if data.name else ''}{line}" for data in sets for line in target_lines(columns_of(results, data))
    ]
    lines.append(f"wrote {setup.folder.path / 'evaluation.json'}")
    problems = [
        f"evaluate.judge: {r.name}: {p.spoken.problem}" for r in results for p in r.parts if p.spoken and p.spoken.problem
    ]
    judged = [data.named("consistency/accuracy") for data in sets if data.has_beliefs]
    unjudged = judge is not None and any(name not in r.estimates for r in results for name in judged)
    return Report(job.path, {r.name: r.estimates for r in results}, lines, problems, unjudged)


def check_folders_apart(configs: Sequence[Config], names: Sequence[str]) -> None:
    """UserError where two evaluations would write to one `run.dir`."""
    seen: dict[Path, str] = {}
    for config, name in zip(configs, names, strict=True):
        config.require(*REQUIRED)
        other = seen.setdefault(Path(config.run.dir).resolve(), name)
        if other is not name:
            raise UserError(f"run.dir: {other} and {name} would both write to {config.run.dir}; give each its own")


def side_by_side(configs: Sequence[Config], names: Sequence[str]) -> Config | None:
    """One evaluation with a column for each of several runs, where they can share a table: else None, and why is said.

    Args:
      configs: of the runs. names: their folders.
    """
    first, apart = configs[0], ("model", "reference", "data")
    # Each run brings the copy of its tokenizer.
    plain = [dataclasses.replace(c, model=dataclasses.replace(c.model, tokenizer=None)) for c in configs]
    differing = [key for key in apart for other in plain[1:] if getattr(other, key) != getattr(plain[0], key)]
    if any(getattr(c.objective, "beta", None) != getattr(first.objective, "beta", None) for c in configs):
        differing.append("objective.beta")
    if len({c.head for c in configs}) > 1:
        differing.append("objective.name")
    if any(c.evaluate.models for c in configs):
        say("not in one table, since evaluate.models says what the columns are")
        return None
    if differing:
        say(f"not in one table, since the runs differ in {', '.join(dict.fromkeys(differing))}")
        return None
    columns = {_column(name, names): name for name in names}
    start = {"start": first.model.at} if first.model.path is not None and first.head == "lm_head" else {}
    asked = {c.run.dir for c in configs}  # one, where it was given as an option
    folder = asked.pop() if len(asked) == 1 else os.path.join("runs", f"evaluate-{'-'.join(map(file_name, columns))}")
    evaluate_ = dataclasses.replace(first.evaluate, models=start | columns)
    return dataclasses.replace(first, evaluate=evaluate_, run=dataclasses.replace(first.run, dir=folder))


def _column(name: str, names: Sequence[str]) -> str:
    """The last part of a folder's name, or all of it where another has the same last part."""
    last = [Path(other).resolve().name for other in names]
    own = Path(name).resolve().name
    return own if last.count(own) == 1 and own != "start" else name


def models_of(setup: Setup) -> dict[str, ModelSource]:
    """The models to evaluate by name, checked before any work is done.

    Raises:
      UserError: a folder that is neither a run with a checkpoint nor a model, or of another shape than the starting model.
    """
    given = setup.config.evaluate.models
    if not given:
        trained = setup.folder.chosen
        if not trained.is_run or not trained.steps:
            own = ": it is its own reference, so implicit rewards are 0; give --reference.path"
            alone = "" if setup.config.reference.path or setup.source.shape.head == "score" else own
            say(f"{setup.folder.path} has no checkpoint: evaluating the starting model alone{alone}")
            return {"start": setup.source}
        return {"start": setup.source, "run": as_program(trained_model(trained), setup.source)}
    files: dict[str, str] = {}
    for name in given:
        if (other := files.setdefault(file_name(name), name)) != name:
            raise UserError(f"evaluate.models: {other!r} and {name!r} would share the file samples-{file_name(name)}.jsonl")
    return {name: _model(setup, name, path) for name, path in given.items()}


def _model(setup: Setup, name: str, path: str) -> ModelSource:
    source = model_at(path, setup.source.shape.head, f"evaluate.models: {name}")
    return as_program(source, setup.source)


def say_leaks(config: Config, models: dict[str, ModelSource]) -> None:
    """Says which runs may have been trained on prompts that this config holds out of `data.train`."""
    if config.data.held_out is None:
        return
    for name, source in models.items():
        data = source.run.config.data if isinstance(source, TrainedModel) else None
        keys = ("train", "eval", "max_rows", "split", "subset", "revision")
        differing = [key for key in keys if data is not None and _read(data, key) != _read(config.data, key)]
        if differing:
            say(
                f"{name}: {source.run.path} was trained with another data.{differing[0]}, "
                f"{getattr(data, differing[0])!r}: it may have seen the prompts that data.eval={config.data.held_out} holds out"
            )


def _read(data: DataConfig, key: str) -> Any:
    of = {"split": lambda: data.part("train").wanted, "eval": lambda: data.held_out}
    return of.get(key, lambda: getattr(data, key))()


def _without_samples(config: Config) -> Config:
    return dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, samples=0))


def _plots(job: EvaluationJob, results: Sequence[Result]) -> list[str]:
    try:
        optional("matplotlib", "plots", "a picture")
    except MissingPackage as error:
        return [f"no pictures were drawn: {error}"]
    from align_jax.evaluation.plots import write_plots

    lines, scores = [], job.setup.config.head == "score"
    for i, data in enumerate(job.sets):
        shown = {_shown_as(job, r): (r.parts[i].responses, r.estimates_of(data)) for r in results}
        folder = job.setup.folder.path / "evaluation" / data.name
        folder.mkdir(exist_ok=True)
        lines += [f"wrote {path}" for path in write_plots(shown, data.beta, folder, scores)]
    return lines


def _shown_as(job: EvaluationJob, result: Result) -> str:
    """The name of a model in pictures: the one it was given, else what it is."""
    if job.setup.config.evaluate.models:
        return result.name
    return "before training" if result.step is None else f"{job.setup.folder.path.name}, step {result.step}"
