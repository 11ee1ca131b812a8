"""Data of any readable layout as one file of another: grouped, joined, scored, split."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align_jax.config import Config
from align_jax.data.formats import Example, find_format, spelled
from align_jax.data.inspect.findings import named
from align_jax.data.inspect.gather import Noting
from align_jax.data.look import read_rows
from align_jax.data.opened import open_data
from align_jax.data.reading import LeftOut
from align_jax.data.regroup import TARGETS, ConversionCounts, held_out, joined, rows_as, usual_target
from align_jax.data.sources import Part, open_source, rows_read
from align_jax.data.unheld import unheld
from align_jax.data.written import WRITERS, ending_of, write_rows
from align_jax.errors import UserError, check_range
from align_jax.recipes.data_check import config_of_given, spool_of
from align_jax.recipes.say import say, speaking, watching
from align_jax.recipes.score_passes import InputRows, part_of, reward_pass, run_pass, values_of
from align_jax.registry import suggest
from align_jax.terminal import plural


@dataclasses.dataclass(frozen=True)
class Conversion:
    """How data is converted.

    Attributes:
      to: groups, pairs, unpaired, completions, samples, prompts or gdpo; None: what loses nothing, groups for most.
      join: make one group of all rows of a prompt.
      reward_model: folder, hub id or run folder of a model whose scores take the place of those that are there.
      split: a fraction of the prompts that goes to a second file: OUTPUT.train and OUTPUT.eval.
      force: replace files that are there.
    """

    to: str | None = None
    join: bool = False
    reward_model: str | None = None
    split: float | None = None
    force: bool = False

    def __post_init__(self):
        if self.to is not None and self.to not in TARGETS:
            near = {"kto": "did you mean unpaired? ", "dpo": "did you mean pairs? "}.get(self.to) or suggest(self.to, TARGETS)
            raise UserError(f"--to: {self.to!r} is none of the formats that are written; {near}there are {', '.join(TARGETS)}")
        check_range("--split", self.split, 0, 1, open_low=True, open_high=True)


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
      files: which. to: the format of their rows. counts: what became of the rows.
    """

    files: tuple[Path, ...]
    to: str
    counts: ConversionCounts


def convert_data(what: Any, output: str | os.PathLike, *overrides: str, **how: Any) -> Converted:
    """Writes data as JSONL (`.jsonl`, `.jsonl.gz`), Parquet or ArrayRecord (`.array_record`), by the ending of the output.

        convert_data("pairs.jsonl", "groups.parquet", join=True)
        convert_data("HuggingFaceH4/ultrafeedback_binarized", "uf.jsonl", "data.split=train_prefs")

    Args:
      what: a data file, folder or hub id; a list of rows or a `datasets.Dataset`; or a config whose `data.train` it is.
      overrides: `data.key=value`. how: the fields of `Conversion`.

    Raises:
      UserError: a malformed row (file and line), a file that is there already, rows that the output cannot hold.
    """
    try:
        conversion = Conversion(**how)
    except TypeError as error:
        names = ", ".join(field.name for field in dataclasses.fields(Conversion))
        raise UserError(f"convert_data: {error}; the options are {names}") from error
    if not isinstance(output, str | os.PathLike):
        raise UserError(f"convert_data: {output!r} is no path to write to; expected one that ends in {', '.join(WRITERS)}")
    return run(config_of_given(what, overrides, "data convert"), Path(output), conversion)


def run(config: Config, output: Path, how: Conversion, stop: Callable[[], bool] = lambda: False) -> Converted | None:
    """Converts `data.train` of a config, see `convert_data`; None where `stop` ended the scoring, which goes on next time."""
    with speaking(config.log.quiet, config.log.progress):
        return _run(config, output, how, stop)


def _run(config: Config, output: Path, how: Conversion, stop: Callable[[], bool]) -> Converted | None:
    if config.data is None or config.data.train is None:
        raise UserError("data.train: there is no data to convert")
    files = _files(output, how)
    counts = ConversionCounts()
    examples = read_examples(config, counts)
    if how.to is None and how.reward_model is None:
        usual_target(examples)  # before anything is done
    if how.join:
        examples = joined(examples, counts)
    if how.reward_model is not None:
        examples = _rescored(config, examples, output, (how.reward_model, stop))
        if examples is None:
            return None
        counts.rescored = True
        say(f"the scores are those of {how.reward_model}; what was there before is left out")
    to = how.to or usual_target(examples)
    for line in unheld(to, examples):
        say(line)
    parts = [False] * len(examples) if how.split is None else held_out(examples, how.split)
    written = 0
    for file, which in zip(files, (False, True), strict=False):
        kept, own = [e for e, out in zip(examples, parts, strict=True) if out == which], ConversionCounts()
        rows = rows_as(to, kept, own)
        expected = [example for example in kept if not isinstance(TARGETS[to](example), str)]
        if not rows:
            raise UserError(f"{file}: no row is left to write: {'; '.join(own.describe()[1:])}")
        write_rows(rows, file, lambda made, rows=rows: check_written(made, to, rows))
        written += own.groups
        counts.dropped.update(own.dropped)
        say(
            f"{file}: {plural(len(rows), 'row')}, format {to}"
            + (f", of {plural(len(expected), 'group')}" if len(expected) != len(rows) else "")
        )
    counts.groups = written
    for line in counts.describe():
        say(line)
    if how.reward_model is not None:
        _remove_part(output)
    return Converted(tuple(files), to, counts)


def _files(output: Path, how: Conversion) -> list[Path]:
    """The files that are written; none may be there, unless it may be replaced."""
    ending = ending_of(output)
    stem = output.name.removesuffix(ending)
    names = [output.name] if how.split is None else [f"{stem}.{part}{ending}" for part in ("train", "eval")]
    files = [output.with_name(name) for name in names]
    for file in files:
        if file.exists() and not how.force:
            raise UserError(f"{file} is there already; --force replaces it")
    return files


def read_examples(config: Config, counts: ConversionCounts) -> list[Example]:
    """All rows of `data.train`; says what is not kept of them."""
    opened = open_data(dataclasses.replace(config.data, eval=None), "train", spool_of(config))
    source, data_format = opened[0], opened[1]
    bad: list[dict[str, str]] = []
    noting, columns = Noting(data_format.read), set()
    left_out: list[LeftOut] = []

    def read(row: Mapping) -> Example:
        example, noted = noting(row)
        columns.update(str(name) for name, value in dict.items(noted) if value is not None and name not in noted.read)
        return example

    for note in source.notes:
        say(note)
    with watching(f"reading {opened.path}", len(source), "rows") as watch:
        examples = []
        for _, example in read_rows(source, read, config.data.on_bad_row, bad, left_out):
            examples.append(example)
            watch.add()
    counts.rows = rows_read(source)
    if columns:
        say(f"columns that are not kept, since format {spelled(data_format)} does not read them: {named(sorted(columns))}")
    for why in left_out:
        counts.dropped[f"{why} (data.on_empty: drop)"] += 1
    if bad:
        counts.dropped[f"malformed, the first: {bad[0]['where']}: {bad[0]['reason']}"] = len(bad)
    if not examples:
        raise UserError(f"{opened.path}: no row is left to convert: {'; '.join(counts.describe())}")
    if empty := sum(example.left_out for example in examples):
        say(f"{plural(empty, 'empty answer is', 'empty answers are')} left out of rows that stay (data.on_empty: drop)")
    return examples


def _rescored(
    config: Config, examples: list[Example], output: Path, model: tuple[str, Callable[[], bool]]
) -> list[Example] | None:
    """The examples with scores of a reward model; None where it was stopped."""
    path, stop = model
    bare = [dataclasses.replace(example, scores=None, desirable=None, tokens=None) for example in examples]
    if any(example.opinion is not None for example in bare):
        raise UserError("--reward-model: rows with beliefs are no groups of responses to be scored")
    if any(not example.responses for example in bare):
        raise UserError("--reward-model: the rows have no responses")
    digest = hashlib.sha256(repr(bare).encode(errors="surrogatepass")).hexdigest()
    places = [f"group {i}" for i in range(len(bare))]
    rows = InputRows([{} for _ in bare], places, bare, [{} for _ in bare], digest)
    score = dataclasses.replace(config.score, reward_model=path, output=str(output))
    one = reward_pass(dataclasses.replace(config, score=score), rows)
    if not run_pass(one, str(output), stop):
        return None
    values = values_of(one, str(output))
    return [dataclasses.replace(e, scores=tuple(v), desirable=None) for e, v in zip(examples, values, strict=True)]


def _remove_part(output: Path) -> None:
    part = part_of(str(output), "scores")
    for path in (part, part.with_name(part.name + ".settings.json")):
        path.unlink(missing_ok=True)


def check_written(file: Path, to: str, rows: Sequence[dict[str, Any]]) -> None:
    """Reads what was written again: it must be the same examples.

    Raises:
      UserError: it is not.
    """
    source, data_format = open_source(str(file), Part()), find_format(to)
    for number, row in enumerate(rows):
        if data_format.read(source[number]) != data_format.read(row):
            raise UserError(
                f"row {number} would be read otherwise from {file.suffix} than it was ({row['prompt']!r:.80}); write .jsonl"
            )
    if len(source) != len(rows):
        raise UserError(f"{file.name}: {len(source)} rows are read of {len(rows)} that were written")


__all__ = ["Conversion", "Converted", "convert_data", "run"]
