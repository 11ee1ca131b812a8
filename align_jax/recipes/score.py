"""Scoring: log-probs, implicit rewards and a reward model's scores of responses that are there.

One model at a time is in memory: each pass over the rows (the policy, the reference, the reward model) keeps what it has
in a file of its own beside the output, so that an interrupted run loses nothing, and the last step joins them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from align_jax.config import Config
from align_jax.config.jobs import JOBS
from align_jax.data import DataConfig, open_source
from align_jax.data.formats import AUTO, Format, find_format
from align_jax.data.opened import format_of
from align_jax.data.sources import RowError, Source
from align_jax.errors import UserError
from align_jax.files import INDEX, ResultsFile, check_apart
from align_jax.parallel.processes import on_first
from align_jax.parallel.stop import StopSignal
from align_jax.recipes.memory import memory_explained, of_pass
from align_jax.recipes.say import say, say_once, speaking, watching
from align_jax.recipes.score_passes import InputRows, Pass, part_of, policy_passes, reward_pass, run_pass, values_of
from align_jax.terminal import plural

REQUIRED = JOBS["score"].requires


def score(config: Config | str | os.PathLike | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores the responses of `score.input`, as the `score` section says.

    Returns:
      The rows of `score.output`, see `run`.

    Raises:
      UserError: anything wrong with the rows (file and line), the models or the files, before a model is loaded.
    """
    config = Config.of(config)
    with StopSignal() as stop:  # Ctrl-C raises here
        complete = run(config, stop.requested)
    if not complete:
        raise UserError(f"{config.score.output}: stopped by SIGTERM; the same call goes on from there")
    return [json.loads(line) for line in Path(config.score.output).read_bytes().splitlines()]


def run(config: Config, stop: Callable[[], bool] = lambda: False) -> bool:
    """Scores what the `score` section asks for.

    The policy is the newest checkpoint of `run.dir` where there is one, otherwise `model`; the reference is
    `reference.path`, otherwise `model`. Columns: `logps`, `ref_logps`, `implicit_rewards` (`objective.beta`, 0.1 by default,
    times their difference), `lengths` and `truncated` (tokens of each response, and which were cut to the `data` section's
    lengths); and a reward model's `scores`.

    Args:
      stop: asked after every row; when it says so, the rest is left for the next time.

    Returns:
      Whether all rows are scored.

    Raises:
      UserError: anything wrong with the rows (file and line), the models or the files, before a model is loaded.
    """
    config.require(*REQUIRED)
    chunk = f"model.rows_per_chunk (now {config.model.rows_per_chunk})"
    explained = memory_explained(lambda: of_pass("score.batch_rows", config.score.batch_rows, chunk))
    with speaking(config.log.quiet, config.log.progress), explained:
        return _run(config, stop)


def _run(config: Config, stop: Callable[[], bool]) -> bool:
    options = config.score
    check_apart({"score.input": options.input, "score.output": options.output})
    with watching(f"reading {options.input}"):
        rows = read_rows(config)
    passes = []
    if options.logps:
        passes += policy_passes(config, rows)
    if options.reward_model is not None:
        passes.append(reward_pass(config, rows))
    settings = {"input": rows.digest, "passes": {p.name: p.settings for p in passes}, "beta": _beta(config)}
    with ResultsFile(options.output, settings, len(rows.values), "score.output") as results:
        if results.kept_as:
            say(f"{options.output} held results of other settings, or was changed since; they are kept as {results.kept_as}")
        if len(results.done) < len(rows.values):
            if not all(run_pass(p, options.output, stop) for p in passes):
                return False
            on_first(lambda: _join(rows, passes, results, config), "score.output")
    on_first(lambda: _remove_parts(passes, options.output), "score.output")
    say(f"{len(rows.values)} rows are in {options.output}")
    return True


def _join(rows: InputRows, passes: list[Pass], results: ResultsFile, config: Config) -> None:
    """Writes the rows that are not there yet, with the values of all passes."""
    values = {p.name: values_of(p, config.score.output) for p in passes}
    for i in range(len(rows.values)):
        if i not in results.done:
            results.write(i, output_row(rows, i, {name: found[i] for name, found in values.items()}, config))


def _remove_parts(passes: list[Pass], output: str) -> None:
    for p in passes:
        part = part_of(output, p.name)
        for path in (part, part.with_name(part.name + ".settings.json")):
            path.unlink(missing_ok=True)


def read_rows(config: Config) -> InputRows:
    """Reads and checks the input; with `data.on_bad_row: skip`, malformed rows are left out and said."""
    data = config.data or DataConfig()
    source = open_source(config.score.input, dataclasses.replace(data.part("score"), streaming=False))
    for note in source.notes:
        say_once(f"score.input: {note}")
    rows, bad, read = InputRows([], [], [], [], source.digest), [], _format(data, source).read_responses
    for i in range(len(source)):
        where = source.where(i)
        try:
            values = source[i]
            example = read(values)
        except RowError as error:
            if data.on_bad_row == "error":
                raise UserError(f"{where}: {error} (data.on_bad_row: skip leaves such rows out)") from error
            bad.append(f"{where}: {error}")
            continue
        if INDEX in values:
            raise UserError(f"{where}: the column {INDEX!r} is used by unfinished results; finish them, or rename it")
        rows.values.append(values), rows.where.append(where), rows.examples.append(example), rows.columns.append({})
    if bad:
        say(f"{plural(len(bad), 'malformed row')} left out: {'; '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}")
    if not rows.values:
        raise UserError(f"{config.score.input}: all {len(bad)} rows are malformed, the first: {bad[0]}")
    return rows


def _format(data: DataConfig, source: Source) -> Format:
    """The format of the input; with `auto`, prompts with responses need no scores."""
    if data.format == AUTO:
        with contextlib.suppress(RowError):
            if {"prompt", "responses"} <= source[0].keys():
                return find_format("groups")
    found = format_of(data, source)
    return find_format("groups") if found.responses == 0 else found  # which says that there are no responses


def output_row(rows: InputRows, i: int, values: dict[str, list[float]], config: Config) -> dict[str, Any]:
    """Row i of the output; a column `scores` of the input becomes `previous_scores` where there are new ones."""
    row, example = rows.values[i], rows.examples[i]
    result = {**row, "prompt": example.prompt, "responses": list(example.responses)}
    if "logps" in values:
        logps = values["logps"]
        ref = values.get("ref_logps", logps)
        rewards = [_beta(config) * (a - b) for a, b in zip(logps, ref, strict=True)]
        result |= {"logps": logps, "ref_logps": ref, "implicit_rewards": rewards}
    if "scores" in values:
        result |= ({"previous_scores": row["scores"]} if "scores" in row else {}) | {"scores": values["scores"]}
    return result | rows.columns[i]


def _beta(config: Config) -> float:
    return getattr(config.objective, "beta", 0.1)
