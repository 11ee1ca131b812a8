"""What each command does: a recipe, and its results on the terminal. What is heavy is imported by the one that needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from align_jax.cli.arguments import whole_number
from align_jax.cli.data import STOPPED
from align_jax.cli.invocation import Invocation
from align_jax.config import describe
from align_jax.config.packaged import copy_config, destination, packaged_configs, purpose
from align_jax.errors import UserError

USAGE_ERROR = 2  # what the user can mend


def train(request: Invocation) -> int:
    from align_jax.recipes.jobs import train as recipe

    config = request.config()
    done = recipe(config)
    return 0 if done.finished else config.run.stopped_status  # SIGTERM, after a checkpoint; Ctrl-C raises after it


def evaluate(request: Invocation) -> int:
    import jax

    from align_jax.evaluation import joint_table, text_table
    from align_jax.recipes.evaluate import check_folders_apart, report_of, side_by_side
    from align_jax.recipes.say import say, speaking

    paths, configs = request.given["config.yaml"], request.configs()
    if len(paths) > 1 and all(os.path.isfile(os.path.join(path, "config.yaml")) for path in paths):
        with speaking(configs[0].log.quiet):
            joined = side_by_side(configs, paths)
        paths, configs = (paths, configs) if joined is None else ([joined.run.dir], [joined])
    check_folders_apart(configs, paths)
    reports = [report_of(config) for config in configs]
    if jax.process_index() == 0:
        tables = {f"{r.path}, by {path}": r.columns for path, r in zip(paths, reports, strict=True)}
        print(joint_table(tables) if len(tables) > 1 else text_table(reports[0].columns))
    for config, report in zip(configs, reports, strict=True):
        with speaking(config.log.quiet):
            for line in report.lines:
                say(line)
        for problem in report.problems:
            say(problem)
    return USAGE_ERROR if any(report.unjudged for report in reports) else 0


def export(request: Invocation) -> int:
    from align_jax.recipes.export import export
    from align_jax.recipes.say import say

    given = request.given
    how = {"overwrite": given["overwrite"], "merge": given["merge"]}
    step = export(given["run_dir"], given["out_dir"], given["step"], given["dtype"], **how)
    say(f"exported step {step} of {given['run_dir']} to {given['out_dir']}")
    return 0


def checkpoints(request: Invocation) -> int:
    import dataclasses

    from align_jax.recipes import checkpoints as recipe

    found = recipe.checkpoints(request.given["run_dir"])
    print(json.dumps([dataclasses.asdict(one) for one in found]) if request.given["json"] else recipe.table(found))
    return 0 if recipe.newest_is_whole(found) else 1


def generate(request: Invocation) -> int:
    from tqdm import tqdm

    from align_jax.recipes import generate as recipe

    prompts, config = request.given["prompt"], request.config()
    if prompts:
        config = recipe.for_prompts(config)
    if not prompts or config.generate.output is not None:
        return _resumable(recipe.run, config, prompts=prompts)
    for prompt, responses in recipe.answers(config, prompts):
        tqdm.write("\n".join(_as_text(prompt, responses)))  # beside the progress bar
        sys.stdout.flush()
    return 0


def _as_text(prompt: str, responses: list[str]) -> list[str]:
    """A prompt with its samples, for a terminal."""
    lines = [f"=== {prompt}"]
    for number, response in enumerate(responses, start=1):
        lines += [f"--- {number} of {len(responses)}"] if len(responses) > 1 else []
        lines.append(response)
    return [*lines, ""]


def score(request: Invocation) -> int:
    from align_jax.recipes import score as recipe

    return _resumable(recipe.run, request.config())


def bench(request: Invocation) -> int:
    from align_jax.cost.report import fit, recommended, sweep_table, table
    from align_jax.recipes import bench as recipe

    given, config = request.given, request.config()
    if given["sweep"] is None:
        # A table at once: what is recommended takes further compilations, of minutes for a large model.
        values = recipe.bench(config, None if given["json"] else lambda values: print(table(values), flush=True))
        if said := json.dumps(values) if given["json"] else recommended(values):
            print(said)
        return 0
    results = []
    for values in recipe.sweep(config, given["sweep"]):
        results.append(values)
        if given["json"]:
            print(json.dumps(values), flush=True)
    if not given["json"]:
        print(sweep_table(results))
    elif len(results) > 1:
        print(json.dumps({"fit": fit(results)}))
    return 0


def compile_step(request: Invocation) -> int:
    from align_jax.cost import topology_report
    from align_jax.recipes import compile as recipe

    given, config = request.given, request.config()
    rows = (given["prompt_tokens"], given["response_tokens"], given["responses"])
    asked = recipe.CompileRequest(
        given["topology"],
        slices=1 if given["slices"] is None else given["slices"],
        lengths=given["lengths"],
        rows=None if rows == (None, None, None) else recipe.lengths_of(config, *rows),
        model=given["model"],
        shapes=2 if given["shapes"] is None else given["shapes"],
        candidates=2 if given["candidates"] is None else given["candidates"],
    )
    values = recipe.compile_step(config, asked)
    print(json.dumps(values) if given["json"] else topology_report.table(values))
    return 0 if values["fits"] else 1


def config(request: Invocation) -> int:
    given = request.given
    if given["explain"] is not None and given["markdown"]:
        raise UserError("give --explain KEY or --markdown, not both")
    if given["explain"] is not None:
        print(describe.explain(given["explain"]))
    elif given["markdown"]:
        from align_jax.config.collect import collected  # from the code, also where keys.json is not up to date

        print(describe.markdown(collected()), end="")
    else:
        print(describe.table())
    return 0


def configs(request: Invocation) -> int:
    name, dest = request.given["name"], request.given["dest"]
    if name is not None:
        there = destination(name, dest).exists()
        print(f"{copy_config(name, dest)}{' is there already, unchanged' if there else ''}")
        return 0
    for name, file in packaged_configs().items():
        print(f"{name:<30}{textwrap.shorten(purpose(file), 96, placeholder=' ...')}")
    return 0


def experiment(request: Invocation) -> int:
    from align_jax.experiments import find_experiment

    return find_experiment(request.given["name"])(request.given["rest"]) or 0


def _resumable(run: Callable, config: Any, **options: Any) -> int:
    """A job that goes on where it was: SIGTERM keeps what there is."""
    from align_jax.parallel.stop import StopSignal

    with StopSignal() as stop:
        return 0 if run(config, stop=stop.requested, **options) else STOPPED


def counts(text: str) -> list[int]:
    """The numbers of `K=2,8,32`, for `Argument.type`."""
    name, equals, numbers = text.partition("=")
    counts = [n for n in numbers.split(",") if n.isdigit() and int(n) > 0]
    if name != "K" or not equals or len(counts) != len(numbers.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not K= and positive numbers of responses, such as K=2,8,32")
    return [int(n) for n in counts]


def step_or_best(text: str) -> int | str:
    """A step or `best`, for `Argument.type`."""
    return text if text == "best" else whole_number(text)
