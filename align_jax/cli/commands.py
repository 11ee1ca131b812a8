"""The commands: what each is called with, and the recipe that it runs. What is heavy is imported by the one that needs it."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from align_jax.cli import data
from align_jax.cli.arguments import Argument, Given, whole_number
from align_jax.config import describe
from align_jax.config.early import check_early
from align_jax.config.given import config_of, data_of
from align_jax.config.jobs import JOBS
from align_jax.config.packaged import copy_config, destination, packaged_configs, purpose
from align_jax.config.source import ConfigValues, Override
from align_jax.errors import UserError

USAGE_ERROR = 2  # what the user can mend
STOPPED = data.STOPPED
_OVERRIDES = "[--section.key value ...]"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      run: what it does with its arguments and configs; returns the exit status.
      about: a line. more: what else there is to say of it. example: that works, given the files in it.
      arguments: its own; where one is CONFIG.yaml, keys of the config may be given, too.
      takes_folders: in place of a config: the folder of a run or a model, or a hub id.
      takes_data: the argument that is data, or a config that names some; else empty.
      unless: what makes some required keys superfluous.
      computes: whether it needs the devices, and so JAX.
      passes_on: what stands behind its first argument is another program's.
    """

    run: Callable[[Invocation], int]
    about: str
    example: str
    arguments: tuple[Argument, ...] = ()
    more: str = ""
    takes_folders: bool = False
    takes_data: str = ""
    unless: str = ""
    computes: bool = True
    passes_on: bool = False

    @property
    def reads_config(self) -> bool:
        return bool(self.takes_data) or any(argument.name == "CONFIG.yaml" for argument in self.arguments)

    @property
    def long(self) -> str:
        return f"{self.about[0].upper()}{self.about[1:]}.{' ' if self.more else ''}{self.more}"

    def usage(self, name: str) -> str:
        words = ["align-jax", name, *(argument.spelled for argument in self.arguments)]
        return " ".join([*words, *([_OVERRIDES] if self.reads_config or self.passes_on else [])])


@dataclasses.dataclass(frozen=True)
class Invocation:
    """A command with what it was given.

    Attributes:
      given: its arguments. read: what was read for each config, with what follows from a folder in a config's place.
    """

    given: Given
    read: list[tuple[ConfigValues, list[Override]]]

    @classmethod
    def of(cls, name: str, command: Command, given: Given) -> Invocation:
        """Reads the configs and checks them, before anything heavy is imported.

        Raises:
          UserError: see `config.early.check_early`.
        """
        if not command.reads_config:
            return cls(given, [])
        words = given[command.takes_data.lower() or "config.yaml"]
        if command.takes_data:
            read = [data_of(words, name)]
        else:
            read = [config_of(word, name, command.takes_folders) for word in (words if isinstance(words, list) else [words])]
        requires, files = (JOBS[name].requires, JOBS[name].files) if not given.values.get("prompt") else (("model",), ())
        if given.values.get("model"):  # in place of the config's
            requires = tuple(key for key in requires if key != "model")
        for source, follows in read:
            check_early(source, [*follows, *given.overrides], requires, files)
        return cls(given, read)

    def configs(self) -> list[Any]:
        """The typed configs; says what of their files the options displaced."""
        from align_jax.config import load_config
        from align_jax.recipes.say import say, speaking

        found = []
        for source, follows in self.read:
            found.append(load_config(copy.deepcopy(source), [*follows, *self.given.overrides]))
            with speaking(found[-1].log.quiet):
                for note in found[-1].source.notes:
                    say(note)
        return found

    def config(self) -> Any:
        """The typed config of a command that takes one."""
        return self.configs()[0]


def train(request: Invocation) -> int:
    from align_jax.recipes.jobs import train as recipe

    recipe(request.config())
    return 0  # also when SIGTERM ended the run, after a checkpoint; Ctrl-C raises after it


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
    from align_jax.cost.report import fit, sweep_table, table
    from align_jax.recipes import bench as recipe

    given, config = request.given, request.config()
    if given["sweep"] is None:
        values = recipe.bench(config)
        print(json.dumps(values) if given["json"] else table(values))
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


def _counts(text: str) -> list[int]:
    """The numbers of `K=2,8,32`, for `Argument.type`."""
    name, equals, numbers = text.partition("=")
    counts = [n for n in numbers.split(",") if n.isdigit() and int(n) > 0]
    if name != "K" or not equals or len(counts) != len(numbers.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not K= and positive numbers of responses, such as K=2,8,32")
    return [int(n) for n in counts]


def _step(text: str) -> int | str:
    """A step or `best`, for `Argument.type`."""
    return text if text == "best" else whole_number(text)


_CONFIG = Argument("CONFIG.yaml", "the config; every key of it may be given as --section.key VALUE, too")
_PLACE = Argument("CONFIG.yaml", "a config, or in its place a run folder, a model's folder or a hub id")
_JSON = Argument("--json", "print one JSON object instead of a table")

COMMANDS = {
    "train": Command(
        train,
        "train a model; resumes a run folder that has checkpoints",
        "cat > mine.yaml <<END\n"
        "model: {path: path/to/llama}            # a folder, or a hub id\n"
        "data: {train: train.jsonl, eval: 0.05}  # 5% of the prompts are held out\n"
        "objective: {name: dpo}\n"
        "END\n"
        "align-jax train mine.yaml --train.epochs 1 --run.dir runs/mine",
        (_CONFIG,),
        "Metrics go to run.dir/metrics.jsonl, checkpoints to run.dir/checkpoints.",
    ),
    "evaluate": Command(
        evaluate,
        "compare models on held-out data, as one table with intervals",
        "align-jax evaluate mine.yaml --data.eval eval.jsonl\nalign-jax evaluate runs/mine",
        (Argument("CONFIG.yaml", f"{_PLACE.help}; several become one table", many=True),),
        "By default the starting model and the run's newest checkpoint are compared. Writes evaluation.json to run.dir.",
        takes_folders=True,
    ),
    "export": Command(
        export,
        "write a run's checkpoint as a Hugging Face folder",
        "align-jax export runs/mine out --dtype bfloat16",
        (
            Argument("RUN_DIR", "the folder of a run"),
            Argument("OUT_DIR", "the folder to write, which transformers loads"),
            Argument("--step", "which checkpoint, or best: by checkpoint.best_metric; the newest by default", "N", _step),
            Argument("--dtype", "float32, bfloat16 or float16; that of the trained weights by default", "TYPE"),
            Argument("--overwrite", "replace an earlier export"),
            Argument("--merge", "of a run with `lora`: the whole model; without, the adapter alone, in PEFT's format"),
        ),
    ),
    "generate": Command(
        generate,
        "sample responses to prompts",
        'align-jax generate out --prompt "Once upon a time" --generate.samples 2\n'
        "align-jax generate mine.yaml --generate.prompts prompts.jsonl \\\n"
        "    --generate.output samples.jsonl",
        (
            _PLACE,
            Argument(
                "--prompt",
                "a prompt, any number of times; prints the texts, unless there is --generate.output",
                "TEXT",
                many=True,
            ),
        ),
        "The model is that of the newest checkpoint in run.dir where there is one, otherwise model.path.",
        takes_folders=True,
        unless="with --prompt only the model",
    ),
    "score": Command(
        score,
        "compute log-probs, implicit rewards and a reward model's scores of responses",
        "align-jax score runs/mine --score.input rows.jsonl --score.output scored.jsonl",
        (_PLACE,),
        takes_folders=True,
    ),
    "bench": Command(
        bench,
        "measure time, memory and FLOPs of a training step",
        "align-jax bench mine.yaml --bench.prompt_tokens 192 --bench.response_tokens 64",
        (
            _CONFIG,
            _JSON,
            Argument("--sweep", "numbers of responses, one after the other, with random tokens", "K=2,8,32", _counts),
        ),
    ),
    "compile": Command(
        compile_step,
        "compile a training step for a TPU that is not there",
        "align-jax compile mine.yaml --topology v5p:4x4x4 --mesh.fsdp -1\n"
        "align-jax compile mine.yaml --topology v6e:16x16 --lengths hh --mesh auto",
        (
            _CONFIG,
            Argument("--topology", "such as v5e:4x4 or v5p:4x4x4", "NAME", required=True),
            Argument("--slices", "how many such topologies, joined by a slow network; 1 by default", "N", whole_number),
            Argument("--model", "a known shape in place of the config's model: llama-3-8b, mistral-7b and others", "NAME"),
            Argument(
                "--lengths",
                'token counts in place of data.train: JSONL, {"prompt": 120, "responses": [300, 41]}; or ultrafeedback, hh, '
                "long-chat, alpaca-eval",
                "FILE",
            ),
            Argument("--shapes", "how many of the epoch's shapes are compiled; 2 by default", "N", whole_number),
            Argument("--candidates", "with --mesh auto, how many meshes are compiled; 2 by default", "N", whole_number),
            Argument("--prompt-tokens", "full rows in place of data: data.max_prompt_tokens, else 512", "N", whole_number),
            Argument("--response-tokens", "the same: data.max_response_tokens by default, else 512", "N", whole_number),
            Argument("--responses", "of a prompt, with full rows; data.max_responses by default, else 4", "N", whole_number),
            _JSON,
        ),
        "Exits with 0 where the step fits the chip's memory, 1 where it does not, 2 where it cannot be compiled.",
    ),
    "data check": Command(
        data.check,
        "look at data before training on it: scores, repeats, outliers, lengths",
        "align-jax data check train.jsonl --tokenizer path/to/llama --plot data.png\n"
        "align-jax data check mine.yaml --strict --out checked",
        data.CHECK,
        "Exits with 0 where nothing is wrong, 1 where problems were found, 2 where the data cannot be read.",
        takes_data="DATA",
        computes=False,
    ),
    "data convert": Command(
        data.convert,
        "write any data as grouped JSONL, Parquet or ArrayRecord; join pairs, add scores",
        "align-jax data convert pairs.jsonl groups.parquet --join\n"
        "align-jax data convert a.jsonl b.jsonl --reward-model path/to/rm --split 0.05",
        data.CONVERT,
        takes_data="INPUT",
    ),
    "data beliefs": Command(
        data.beliefs,
        "label answers with the beliefs that they express, for GDPO",
        "align-jax data beliefs answers.jsonl --options support,oppose,unsure \\\n"
        "    --output beliefs.jsonl --by model --model path/to/llama",
        data.BELIEFS,
        "Writes format gdpo, with the distribution of beliefs of each prompt and how well it is known.",
        takes_data="INPUT",
    ),
    "experiment": Command(
        experiment,
        "run the quick start, or try a claim of a paper",
        "align-jax experiment quickstart --run.dir runs/first\n"
        "align-jax experiment list\n"
        "align-jax experiment gdpo-calibration --quick --seeds 3\n"
        "align-jax experiment gdpo-real --model smollm2",
        (Argument("NAME", "the experiment, all of them, or package.module:function; `list` lists them", optional=True),),
        "`align-jax experiment NAME --help` says what an experiment does; claims end in holds, fails or unclear.",
        passes_on=True,
    ),
    "config": Command(
        config,
        "print every key of a config and what it means",
        "align-jax config --explain train.eval_every",
        (
            Argument("--explain", "all about one key or section, such as train.eval_every or train", "KEY"),
            Argument("--markdown", "all keys as a page: docs/config.md"),
        ),
        computes=False,
    ),
    "configs": Command(
        configs,
        "list the configs that come with it, or copy one",
        "align-jax configs mpo-preferences mine.yaml",
        (
            Argument("NAME", "the config to copy; without it, all are listed", optional=True),
            Argument("DEST", "file or folder; configs/NAME.yaml by default", optional=True),
        ),
        computes=False,
    ),
}
