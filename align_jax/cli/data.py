"""The commands about data: `align-jax data check`, `align-jax data convert` and `align-jax data beliefs`."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from align_jax.cli.arguments import Argument

STOPPED = 143  # SIGTERM before the work was done


def options(text: str) -> tuple[str, ...]:
    """The beliefs of `support,oppose,unsure`, for `Argument.type`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


CHECK = (
    Argument("DATA", "a data file or folder, a hub id or known name, or a config (YAML) or run folder whose data it is"),
    Argument("--tokenizer", "folder or hub id; without it, and without a model in the config, no tokens are checked", "PATH"),
    Argument("--json", "print one JSON object instead of text"),
    Argument("--plot", "draw a picture: .png, .pdf or .svg", "FILE"),
    Argument("--out", "a folder for report.txt, report.json, report.png and lists of all bad rows", "DIR"),
    Argument("--strict", "exit with 1 for warnings, too"),
)

CONVERT = (
    Argument("INPUT", "a data file or folder, a hub id or known name, or a config whose data.train it is"),
    Argument("OUTPUT", "the file to write: .jsonl, .jsonl.gz, .parquet or .array_record"),
    Argument("--to", "groups, pairs, unpaired, completions, samples, prompts or gdpo; by default what loses nothing", "FORMAT"),
    Argument("--join", "make one group of all rows of a prompt; of pairs, a response's score is the share that it won"),
    Argument("--reward-model", "score the responses anew: a folder, a hub id or a run folder", "PATH"),
    Argument("--split", "a fraction of the prompts goes to OUTPUT.eval, the rest to OUTPUT.train", "FRACTION", float),
    Argument("--force", "replace files that are there"),
)

BELIEFS = (
    Argument("INPUT", "a data file or folder, a hub id or known name, or a config whose data.train it is"),
    Argument("--output", "the file to write: .jsonl, .jsonl.gz, .parquet or .array_record", "FILE", required=True),
    Argument("--by", "model, classifier or endpoint", "HOW", required=True),
    Argument(
        "--options", "the beliefs that there are: support,oppose,unsure; those of the rows by default", "A,B,...", options
    ),
    Argument("--model", "with --by model: a folder, hub id or run folder; by default that of the config", "PATH"),
    Argument("--prior", "with --by model: model, its own probability of each belief (default), or uniform", "WHICH"),
    Argument("--labelled", "with --by classifier: texts with their belief, columns text and belief, or format gdpo", "FILE"),
    Argument("--min-posterior", "leave answers out whose belief is less sure than this; they are counted", "P", float),
    Argument("--force", "replace a file that is there"),
)


def check(request: Any) -> int:
    """`align-jax data check`; 0 where nothing is wrong, 1 where problems were found."""
    from align_jax.parallel.distributed import quieter
    from align_jax.terminal import PREFIX, columns, write_line

    quieter()
    from align_jax.recipes import data_check as recipe

    given = request.given
    if given["plot"] is not None:
        recipe.check_picture(Path(given["plot"]))
    if given["out"] is not None:
        Path(given["out"]).mkdir(parents=True, exist_ok=True)
    report = recipe.run(request.config(), given["tokenizer"])
    width = columns(sys.stdout)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # data may hold what this terminal cannot show
    if given["json"]:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        print(report.text(width or None, color=bool(width) and not os.environ.get("NO_COLOR")))
    lines = recipe.write_report(report, Path(given["out"])) if given["out"] is not None else []
    if given["plot"] is not None:
        recipe.plot(report, Path(given["plot"]))
    for line in lines:
        write_line(PREFIX + line)
    return report.status(given["strict"])


def convert(request: Any) -> int:
    """`align-jax data convert`; 143 where SIGTERM ended the scoring, which goes on next time."""
    from align_jax.parallel.stop import StopSignal
    from align_jax.recipes import convert as recipe

    given = request.given
    names = ("to", "join", "reward_model", "split", "force")
    how = recipe.Conversion(**{name: given[name] for name in names})
    with StopSignal() as stop:
        done = recipe.run(request.config(), Path(given["output"]), how, stop.requested)
    return 0 if done is not None else STOPPED


def beliefs(request: Any) -> int:
    """`align-jax data beliefs`."""
    from align_jax.recipes import beliefs as recipe
    from align_jax.recipes.stance_labels import Labelling

    given = request.given
    how = {name: given[name] for name in ("by", "options", "model", "prior", "labelled", "force")}
    how |= {} if given["min_posterior"] is None else {"min_posterior": given["min_posterior"]}
    recipe.run(request.config(), Path(given["output"]), Labelling(**how))
    return 0
