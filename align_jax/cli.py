"""The command line, `align-jax COMMAND ...`: arguments to a recipe, results to the terminal, errors to exit codes."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from align_jax.errors import UserError

USAGE_ERROR = 2  # what the user can mend
INTERRUPTED, PIPE_CLOSED, STOPPED = 130, 141, 143  # Ctrl-C; nobody reads the output; SIGTERM before the work was done
_OVERRIDES = "[--section.key value ...]"


def train(argv: Sequence[str]) -> int:
    from align_jax.recipes.jobs import train as recipe

    recipe(_config("train", argv))
    return 0  # also when SIGTERM ended the run, after a checkpoint; Ctrl-C is raised after it


def evaluate(argv: Sequence[str]) -> int:
    import jax

    from align_jax.evaluation import joint_table, text_table
    from align_jax.recipes.evaluate import check_folders_apart, report_of
    from align_jax.recipes.say import say, speaking

    paths = list(itertools.takewhile(lambda word: not word.startswith("--"), argv))
    configs = [_config("evaluate", [path, *argv[len(paths) :]]) for path in paths or [*argv[:1]] or [""]]
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


def export(argv: Sequence[str]) -> int:
    from align_jax.recipes.export import export
    from align_jax.recipes.say import say

    parser = argparse.ArgumentParser(prog="align-jax export")
    parser.add_argument("run_dir")
    parser.add_argument("out_dir")
    parser.add_argument("--step", type=_step, help="which checkpoint, or best: by checkpoint.best_metric; default: the newest")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; that of the trained weights by default")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    options = parser.parse_args(argv)
    step = export(options.run_dir, options.out_dir, options.step, options.dtype, overwrite=options.overwrite)
    say(f"exported step {step} of {options.run_dir} to {options.out_dir}")
    return 0


def _step(text: str) -> int | str:
    if text != "best" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor best")
    return text if text == "best" else int(text)


def generate(argv: Sequence[str]) -> int:
    from align_jax.recipes import generate as recipe

    return _resumable(recipe.run, _config("generate", argv))


def score(argv: Sequence[str]) -> int:
    from align_jax.recipes import score as recipe

    return _resumable(recipe.run, _config("score", argv))


def bench(argv: Sequence[str]) -> int:
    from align_jax.cost.report import fit, sweep_table, table
    from align_jax.recipes import bench as recipe

    parser = argparse.ArgumentParser(prog="align-jax bench", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("--sweep", metavar="K=2,8,32", help="numbers of responses, with random tokens")
    options, rest = parser.parse_known_args(argv)
    config = _config("bench", rest)
    if options.sweep is None:
        values = recipe.bench(config)
        print(json.dumps(values) if options.json else table(values))
        return 0
    results = []
    for values in recipe.sweep(config, _counts(options.sweep)):
        results.append(values)
        if options.json:
            print(json.dumps(values), flush=True)
    if not options.json:
        print(sweep_table(results))
    elif len(results) > 1:
        print(json.dumps({"fit": fit(results)}))
    return 0


def compile_step(argv: Sequence[str]) -> int:
    from align_jax.cost import topology
    from align_jax.recipes import compile as recipe

    parser = argparse.ArgumentParser(prog="align-jax compile", allow_abbrev=False)
    parser.add_argument("--topology", required=True, help="such as v5e:4x4 or v5p:4x4x4")
    parser.add_argument("--prompt-tokens", type=int, help="data.max_prompt_tokens by default, else 512")
    parser.add_argument("--response-tokens", type=int, help="data.max_response_tokens by default, else 512")
    parser.add_argument("--responses", type=int, help="of a prompt; data.max_responses by default, else 4")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options, rest = parser.parse_known_args(argv)
    config = _config("compile", rest)
    config.require(*recipe.REQUIRED)
    lengths = recipe.lengths_of(config, options.prompt_tokens, options.response_tokens, options.responses)
    values = recipe.compile_step(config, options.topology, lengths)
    print(json.dumps(values) if options.json else topology.table(values))
    return 0


def experiment(argv: Sequence[str]) -> int:
    from align_jax.experiments import find_experiment

    if not argv:
        raise UserError("give the name of an experiment: align-jax experiment NAME [--section.key value ...]")
    return find_experiment(argv[0])(list(argv[1:])) or 0


def config(argv: Sequence[str]) -> int:
    from align_jax.config import describe

    parser = argparse.ArgumentParser(prog="align-jax config")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--explain", metavar="KEY", help="all about one key or section, such as train.eval_every or train")
    chosen.add_argument("--markdown", action="store_true", help="all keys as a page: docs/config.md")
    options = parser.parse_args(argv)
    if options.explain is not None:
        print(describe.explain(options.explain))
    else:
        print(describe.markdown() if options.markdown else describe.table(), end="" if options.markdown else "\n")
    return 0


def configs(argv: Sequence[str]) -> int:
    from align_jax.config.packaged import copy_config, packaged_configs, purpose

    parser = argparse.ArgumentParser(prog="align-jax configs")
    parser.add_argument("name", nargs="?", help="the config to copy; without it, all are listed")
    parser.add_argument("dest", nargs="?", help="file or folder; configs/NAME.yaml by default")
    options = parser.parse_args(argv)
    if options.name is not None:
        print(copy_config(options.name, options.dest))
        return 0
    for name, file in packaged_configs().items():
        print(f"{name:<30}{textwrap.shorten(purpose(file), 96, placeholder=' ...')}")
    return 0


class Command(NamedTuple):
    """A command: what runs it, its arguments, a line of help, and whether it computes (and so needs the devices)."""

    run: Callable[[Sequence[str]], int]
    arguments: str
    help: str
    computes: bool = True


COMMANDS = {
    "train": Command(train, f"CONFIG.yaml {_OVERRIDES}", "train; resumes a run folder that has checkpoints"),
    "evaluate": Command(evaluate, f"CONFIG.yaml [CONFIG.yaml ...] {_OVERRIDES}", "models side by side, one table"),
    "export": Command(export, "RUN_DIR OUT_DIR [--step N] [--dtype D] [--overwrite]", "write a Hugging Face folder"),
    "generate": Command(generate, f"CONFIG.yaml {_OVERRIDES}", "sample responses to prompts"),
    "score": Command(score, f"CONFIG.yaml {_OVERRIDES}", "log-probs, implicit rewards, a reward model's scores"),
    "bench": Command(bench, "CONFIG.yaml [--json] [--sweep K=2,8,32] ...", "time, memory and FLOPs of a step"),
    "compile": Command(compile_step, "CONFIG.yaml --topology v5p:4x4x4 ...", "compile for a TPU that is not there"),
    "experiment": Command(experiment, f"NAME {_OVERRIDES}", "a runnable experiment, such as quickstart"),
    "config": Command(config, "[--explain KEY] [--markdown]", "every key of a config and what it means", computes=False),
    "configs": Command(configs, "[NAME [DEST]]", "list the configs that come with it, or copy one", computes=False),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name not in COMMANDS:
        print(f"align-jax: unknown command {name!r}\n{_usage()}", file=sys.stderr)
        return USAGE_ERROR
    command = COMMANDS[name]
    if rest[:1] in (["-h"], ["--help"]):
        print(f"align-jax {name} {command.arguments}\n\n{command.help}")
        return 0
    try:
        with contextlib.ExitStack() as stack:
            if command.computes:
                from align_jax.parallel.distributed import prepare_process
                from align_jax.parallel.stop import interruptible

                stack.enter_context(interruptible())
                prepare_process()
            status = command.run(rest)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # what reads the output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing to flush at the end
        return PIPE_CLOSED
    except (UserError, OSError) as error:  # an OSError: a folder that cannot be written, a full disk
        print(f"align-jax {name}: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print(f"align-jax {name}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _config(command: str, argv: Sequence[str]):
    """The config of a command's first argument, with the overrides behind it."""
    from align_jax.config import load_config, parse_overrides

    if not argv or not argv[0] or argv[0].startswith("--"):
        raise UserError(f"give a config: align-jax {command} {COMMANDS[command].arguments}")
    return load_config(argv[0], parse_overrides(argv[1:]))


def _resumable(run: Callable, config) -> int:
    """A job that goes on where it was: SIGTERM keeps what there is."""
    from align_jax.parallel.stop import StopSignal

    with StopSignal() as stop:
        return 0 if run(config, stop=stop.requested) else STOPPED


def _counts(text: str) -> list[int]:
    name, equals, numbers = text.partition("=")
    counts = [n for n in numbers.split(",") if n.isdigit() and int(n) > 0]
    if name != "K" or not equals or len(counts) != len(numbers.split(",")):
        raise UserError(f"--sweep {text}: write K= and positive numbers of responses, such as K=2,8,32")
    return [int(n) for n in counts]


def _usage() -> str:
    width = max(len(command.arguments) for command in COMMANDS.values())
    lines = [f"  {name:<11}{command.arguments:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "usage: align-jax COMMAND ...\n\n" + "\n".join(lines)
