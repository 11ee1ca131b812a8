"""`align-jax evaluate CONFIG.yaml [CONFIG.yaml ...] [--section.key value ...]`: models side by side on `data.eval`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
from pathlib import Path

import jax

from align_jax import hf
from align_jax.config import Config, load_config, parse_overrides
from align_jax.data import Encoder
from align_jax.errors import UserError
from align_jax.evaluation import Estimate, Responses, Table, as_json, estimates, joint_table, stack, text_table
from align_jax.files import write_whole
from align_jax.models import weight_shardings
from align_jax.recipes import setup as assemble
from align_jax.recipes.evaluation import (
    EvalData,
    Spoken,
    cut_in,
    divergence_table,
    eval_data,
    judge_of,
    reference_weights,
    speak,
)
from align_jax.recipes.export import trained_config, trained_weights
from align_jax.recipes.folder import has_checkpoints, newest_run, say


def main(argv: list[str]) -> int:
    """Evaluates every model of `evaluate.models`, by default the starting model and the run's newest checkpoint.

    Implicit rewards are relative to the one reference (`reference.path`, by default the starting model), with the config's
    `objective.beta`. Writes `evaluation.json` and the folder `evaluation/` (samples, plots) to `run.dir`; both are there
    after each model, so that a later failure loses none. Prints one table, of all configs if there are several (each with
    its own data and models); overrides are for all of them.
    """
    paths = list(itertools.takewhile(lambda word: not word.startswith("--"), argv))
    if not paths:
        raise UserError("give a config: align-jax evaluate CONFIG.yaml [CONFIG.yaml ...] [--section.key value ...]")
    overrides = parse_overrides(argv[len(paths) :])
    configs = [load_config(path, overrides, require=("run.dir", "model", "data", "data.eval")) for path in paths]
    for i, config in enumerate(configs):
        for path, other in zip(paths[:i], configs[:i], strict=True):
            if Path(config.run.dir).resolve() == Path(other.run.dir).resolve():
                raise UserError(f"run.dir: {paths[i]} and {path} would both write to {config.run.dir}; give each its own")
    reports = [_report(config) for config in configs]
    if jax.process_index() != 0:
        return 0
    tables = {f"{r.path}, by {path}": r.columns for path, r in zip(paths, reports, strict=True)}
    sys.stdout.write((joint_table(tables) if len(tables) > 1 else text_table(reports[0].columns)) + "\n")
    for line in (line for report in reports for line in report.lines):
        say(line)
    return 2 if any(report.unjudged for report in reports) else 0


@dataclasses.dataclass(frozen=True)
class _Report:
    """Of one config: the data's path, the table's columns, what there is to say, and whether a judge failed."""

    path: str
    columns: dict[str, dict[str, Estimate]]
    lines: list[str]
    unjudged: bool


def _report(config: Config) -> _Report:
    folder = Path(config.run.dir)
    mesh, start = assemble.mesh_of(config), assemble.start_of(config)
    sources = sources_of(config, start, folder)
    encoder = Encoder(assemble.tokenizer_of(config), config.data, start.config.vocab_size)
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(mesh):
        data = eval_data(config, start, encoder, assemble.scorer_of(start, config), mesh, folder)
        if config.head == "score" and config.evaluate.samples:
            say("a reward model generates nothing: evaluate.samples is not used")
            data = dataclasses.replace(data, config=_without_samples(config))
        judge = judge_of(data) if data.config.evaluate.samples else None
        results = evaluate(data, sources, judge)
    lines = []
    if config.evaluate.plots and jax.process_index() == 0:
        from align_jax.evaluation.plots import write_plots

        shown = {r.name: (r.responses, r.estimates) for r in results}
        reward = "reward" if config.head == "score" else "implicit reward"
        lines += [f"wrote {path}" for path in write_plots(shown, _beta(data), folder / "evaluation", reward)]
    lines.append(f"wrote {folder / 'evaluation.json'}")
    lines += [f"evaluate.judge: {r.name}: {r.spoken.problem}" for r in results if r.spoken and r.spoken.problem]
    unjudged = judge is not None and any("consistency/accuracy" not in r.estimates for r in results)
    return _Report(data.dataset.path, {r.name: r.estimates for r in results}, lines, unjudged)


@dataclasses.dataclass(frozen=True)
class Source:
    """A model to evaluate: a run folder, a Hugging Face folder, or (path None) the starting model."""

    name: str
    path: Path | None
    is_run: bool = False

    def load(self, config: Config, start: assemble.Start, mesh) -> tuple[dict, int | None]:
        """Its weights on the mesh, and the step of a checkpoint."""
        where = weight_shardings(start.config, mesh)
        if self.path is None:
            return assemble.weights_of(start, config, mesh), None
        if self.is_run:
            run = load_config(self.path / "config.yaml")
            return trained_weights(self.path, run, start.config, None, where)
        return hf.load_weights(self.path, start.config, where, config.model.param_dtype), None


def sources_of(config: Config, start: assemble.Start, folder: Path) -> list[Source]:
    """The models to evaluate, checked before any work is done.

    Raises:
      UserError: a folder that is neither a run with a checkpoint nor a model, or of another shape than the starting model.
    """
    if not config.evaluate.models:
        trained = newest_run(folder)
        run = [Source("run", trained, is_run=True)] if has_checkpoints(trained) else []
        if not run:
            say(f"{folder} has no checkpoint: evaluating the starting model alone")
        return [Source("start", None), *run]
    files: dict[str, str] = {}
    for name in config.evaluate.models:
        if (other := files.setdefault(_file_name(name), name)) != name:
            raise UserError(f"evaluate.models: {other!r} and {name!r} would share the file samples-{_file_name(name)}.jsonl")
    return [_source(name, Path(path), start) for name, path in config.evaluate.models.items()]


def _source(name: str, path: Path, start: assemble.Start) -> Source:
    path = newest_run(path)
    is_run = (path / "config.yaml").exists()
    if is_run and not has_checkpoints(path):
        raise UserError(f"evaluate.models: {name}: {path} is a run without a checkpoint yet")
    if not is_run and not (path / "config.json").exists():
        raise UserError(
            f"evaluate.models: {name}: {path} is neither a run folder (config.yaml, checkpoints/) nor a Hugging Face folder "
            "(config.json)"
        )
    shape = trained_config(path, load_config(path / "config.yaml"))[0] if is_run else hf.load_config(path, start.config.head)[0]
    if shape != start.config:
        raise UserError(f"evaluate.models: {name}: {path} has another shape than the starting model: {shape} != {start.config}")
    return Source(name, path, is_run)


def _without_samples(config: Config) -> Config:
    return dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, samples=0))


def _beta(data: EvalData) -> float:
    return getattr(data.objective, "beta", 1.0)  # a reward model's scores are rewards


def _file_name(model: str) -> str:
    return re.sub(r"[^\w.-]+", "_", model)


@dataclasses.dataclass
class Result:
    """What is known of one model so far."""

    name: str
    path: str
    step: int | None
    responses: Responses
    tables: list[Table]
    spoken: Spoken | None
    estimates: dict[str, Estimate] = dataclasses.field(default_factory=dict)


def evaluate(data: EvalData, sources: list[Source], judge) -> list[Result]:
    """One model after the other, the reference last: there are never two models in memory."""
    options, results = data.config.evaluate, []
    for source in sources:
        params, step = source.load(data.config, data.start, data.mesh)
        say(f"evaluating {source.name}: {source.path or 'the starting model'}" + (f", step {step}" if step is not None else ""))
        responses = data.score(params)
        if not results:
            data.report_cut(responses)
        spoken = speak(data, params, options.samples, judge) if options.samples else None
        del params
        tables = [data.table(responses), *(spoken.tables if spoken else ())]
        results.append(Result(source.name, str(source.path or "start"), step, responses, tables, spoken))
        _finish(data, results, results[-1], judge)
    waiting = [result for result in results if result.spoken and result.spoken.policy is not None]
    if waiting:
        reference = reference_weights(data.config, data.start, data.mesh)
        for result in waiting:
            result.tables.append(divergence_table(data, result.spoken, reference))
            _finish(data, results, result, judge)
    return results


def _finish(data: EvalData, results: list[Result], changed: Result, judge) -> None:
    """Makes the intervals of a model, and writes what there is of all."""
    changed.estimates = estimates(stack(changed.tables), data.config.evaluate.resamples, data.config.run.seed)
    if jax.process_index() != 0:
        return
    metrics = as_json({r.name: r.estimates for r in results})
    models = {r.name: {"path": r.path, "step": r.step, "metrics": metrics[r.name]} for r in results}
    values = data.config.to_dict()
    cut = dict(zip(("prompts", "responses"), cut_in(changed.responses), strict=True))
    settings = {"data": data.dataset.path, "truncated": cut, "seed": data.config.run.seed, "beta": _beta(data)}
    report = {**settings, "evaluate": values["evaluate"], "judge": judge.quality if judge else None, "models": models}
    write_whole(data.folder / "evaluation.json", json.dumps(report, indent=2, default=str) + "\n")
    if changed.spoken:
        name = _file_name(changed.name)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in changed.spoken.rows)
        write_whole(data.folder / "evaluation" / f"samples-{name}.jsonl", "".join(lines))
