"""Models on evaluation sets: what is known of each, as it comes, with its intervals and its files."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from align_jax.evaluation import Estimate, Judge, Responses, Table, as_json, estimates, stack
from align_jax.files import write_whole
from align_jax.parsing import json_of
from align_jax.recipes.eval_text import EvalText
from align_jax.recipes.evaluation import EvalData, Spoken, cut_in, divergence_table, speak
from align_jax.recipes.say import say, watching
from align_jax.recipes.setup import Setup
from align_jax.recipes.source import ModelSource


@dataclasses.dataclass(frozen=True)
class EvaluationJob:
    """What all models are evaluated on, and by whom texts are judged."""

    setup: Setup
    sets: list[EvalData]
    text: EvalText | None
    judge: Judge | None

    @property
    def path(self) -> str:
        """Of the data; of several sets each with its name."""
        return ", ".join(f"{data.name}: {data.dataset.path}" if data.name else data.dataset.path for data in self.sets)


@dataclasses.dataclass
class OfSet:
    """What is known of one model on one set so far."""

    responses: Responses
    tables: list[Table]
    spoken: Spoken | None


@dataclasses.dataclass
class Result:
    """What is known of one model so far: on each set, and of texts."""

    name: str
    path: str
    step: int | None
    parts: list[OfSet]
    text: Table | None
    estimates: dict[str, Estimate] = dataclasses.field(default_factory=dict)

    def estimates_of(self, data: EvalData) -> dict[str, Estimate]:
        """Those of one set, by the names that they have there."""
        if not data.name:
            return self.estimates
        start = data.named("")
        return {name.removeprefix(start): found for name, found in self.estimates.items() if name.startswith(start)}


def columns_of(results: Sequence[Result], data: EvalData) -> dict[str, dict[str, Estimate]]:
    """The estimates of every model on one set: model -> metric -> estimate."""
    return {result.name: result.estimates_of(data) for result in results}


def evaluate_models(job: EvaluationJob, models: dict[str, ModelSource], results: list[Result]) -> None:
    """Adds one model after the other to the results, the reference last: there are never two models in memory."""
    setup = job.setup
    for name, source in models.items():
        params, step = setup.load(source)
        where = "the starting model" if source is setup.source else source.describe()
        say(f"evaluating {name}: {where}" + (f", step {step}" if step is not None else ""))
        parts = [_on(data, params, job.judge, first=not results) for data in job.sets]
        text = job.text.table(params) if job.text is not None else None
        del params
        path = "start" if source is setup.source else source.describe()
        results.append(Result(name, path, step, parts, text))
        _finish(job, results, results[-1], [*list(models)[len(results) :], *_lacking(job, results)])
    if lacking := _lacking(job, results):
        reference = setup.load(setup.reference)[0]
        for number, result in enumerate(results):
            for data, part in _waiting(job, result):
                part.tables.append(divergence_table(data, part.spoken, reference))
            _finish(job, results, result, lacking if number + 1 < len(results) else [])


def written_to(folder: Path, unfinished: bool) -> Path:
    """The file of a report: one that lacks something is put beside a whole one of before, not in its place."""
    whole = folder / "evaluation.json"
    return folder / "evaluation.unfinished.json" if unfinished and _is_whole(whole) else whole


def _is_whole(file: Path) -> bool:
    if not file.exists():
        return False
    try:
        return "unfinished" not in json_of(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):  # somebody's work, as far as is known
        return True


def _lacking(job: EvaluationJob, results: list[Result]) -> list[str]:
    """What of the samples is still to come, behind the models."""
    return ["kl/reference"] if any(_waiting(job, result) for result in results) else []


def _on(data: EvalData, params: dict, judge: Judge | None, first: bool) -> OfSet:
    """A model on one set; `first`: no model was there before."""
    samples = data.config.evaluate.samples
    responses = data.score(params)
    if first:
        data.report_cut(responses)
    spoken = speak(data, params, samples, judge if data.has_beliefs else None) if samples else None
    return OfSet(responses, [data.table(responses), *(spoken.tables if spoken else ())], spoken)


def _waiting(job: EvaluationJob, result: Result) -> list[tuple[EvalData, OfSet]]:
    """The sets whose samples of a model wait for the reference."""
    both = zip(job.sets, result.parts, strict=True)
    return [(data, part) for data, part in both if part.spoken is not None and part.spoken.policy is not None]


def _finish(job: EvaluationJob, results: list[Result], changed: Result, unfinished: list[str]) -> None:
    """Makes the intervals of a model, and writes what there is of all; `unfinished` names what is still to come."""
    config = job.setup.config
    how = (config.evaluate.resamples, config.run.seed)
    with watching(f"intervals of {changed.name}"):
        for data, part in zip(job.sets, changed.parts, strict=True):
            changed.estimates |= {data.named(name): found for name, found in estimates(stack(part.tables), *how).items()}
        if changed.text is not None:
            changed.estimates |= estimates(changed.text, *how)
    if jax.process_index() != 0:
        return
    metrics = as_json({r.name: r.estimates for r in results})
    models = {r.name: {"path": r.path, "step": r.step, "metrics": metrics[r.name]} for r in results}
    folder = job.setup.folder.path
    values = config.to_dict()["evaluate"]
    judge = job.judge.quality if job.judge else None
    report = {**_settings(job, changed), "evaluate": values, "judge": judge, "models": models}
    report |= {"unfinished": unfinished} if unfinished else {}
    write_whole(written_to(folder, bool(unfinished)), json.dumps(report, indent=2, default=str) + "\n")
    if not unfinished:
        (folder / "evaluation.unfinished.json").unlink(missing_ok=True)
    for data, part in zip(job.sets, changed.parts, strict=True):
        if part.spoken:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part.spoken.rows)
            (folder / "evaluation" / data.name).mkdir(exist_ok=True)
            write_whole(folder / "evaluation" / data.name / f"samples-{file_name(changed.name)}.jsonl", "".join(lines))


def _settings(job: EvaluationJob, result: Result) -> dict[str, Any]:
    """What the numbers are of; of several sets, data and cuts of each by its name."""
    cuts = [dict(zip(("prompts", "responses"), cut_in(part.responses), strict=True)) for part in result.parts]
    paths = [data.dataset.path for data in job.sets]
    names = [data.name for data in job.sets]
    one = names == [""]
    shared = {"seed": job.setup.config.run.seed, "beta": job.sets[0].beta}
    texts = {"texts": job.text.pieces.path} if job.text is not None else {}
    by_name = {"data": dict(zip(names, paths, strict=True)), "truncated": dict(zip(names, cuts, strict=True))}
    return ({"data": paths[0], "truncated": cuts[0]} if one else by_name) | shared | texts


def file_name(model: str) -> str:
    """A model's name as a part of that of a file."""
    return re.sub(r"[^\w.-]+", "_", model)
