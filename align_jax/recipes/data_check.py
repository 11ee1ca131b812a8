"""A look at data before anyone pays for training on it: what a file, a folder, a hub id or a config's data are like."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align_jax.config import Config, load_config
from align_jax.config.given import data_of
from align_jax.config.source import Override, parse_overrides
from align_jax.data import BatchLoader, Encoder, GroupDataset, RowLayout, pack_groups
from align_jax.data.inspect.batches import shown
from align_jax.data.inspect.beliefs import belief_findings, belief_tables
from align_jax.data.inspect.findings import LISTED, Finding
from align_jax.data.inspect.gather import Gathered, gather
from align_jax.data.inspect.outliers import outlier_findings
from align_jax.data.inspect.repeats import overlap_finding, repeat_findings
from align_jax.data.inspect.report import DataPart, DataReport
from align_jax.data.inspect.scores import score_findings, score_tables
from align_jax.data.inspect.tokens import measure, token_findings
from align_jax.data.opened import Opened, open_data
from align_jax.errors import MissingPackage, UserError, optional
from align_jax.files import write_whole
from align_jax.objectives import Objective, find_objective
from align_jax.recipes.source import load_tokenizer, read_template, starting_model
from align_jax.terminal import Watch

_GROUPS = 8  # of the first batch
_PICTURES = (".png", ".pdf", ".svg", ".jpg")


def check_data(what: Any, *overrides: str, tokenizer: Any = None) -> DataReport:
    """Looks at data: sizes, scores, repeats, suspicious outliers, beliefs, and with a tokenizer lengths, cuts and boundaries.

        check_data("train.jsonl")                                          # prints as text
        check_data("mine.yaml", "data.max_prompt_tokens=128").status()     # 1 where there are problems

    Args:
      what: a data file, folder or hub id; the path of a config (YAML) or a run folder; a list of rows or a `datasets.Dataset`;
        or what `Config.of` takes.
      overrides: `section.key=value` of the config.
      tokenizer: its folder or hub id, or one of transformers; None: that of the config's model, if it has one.

    Raises:
      UserError: what cannot be read at all.
    """
    if isinstance(what, Config | Mapping):
        config = Config.of(what, *overrides)
    elif isinstance(what, str | os.PathLike):
        options = parse_overrides([f"--{text.removeprefix('--')}" for text in overrides])
        config = config_of_data(os.fspath(what), options)
    else:
        config = Config.of({"data": {"train": what}}, *overrides)
    return run(config, tokenizer)


def config_of_data(word: str, options: list[Override]) -> Config:
    """The config of a data file, folder or hub id, or of a config's file."""
    source, follows = data_of(word, "data check")
    return load_config(source, [*follows, *options])


def run(config: Config, tokenizer: Any = None) -> DataReport:
    """Looks at `data.train` and `data.eval`, see `check_data`.

    Raises:
      UserError: neither is set, or one cannot be read.
    """
    if config.data is None or (config.data.train is None and config.data.eval is None):
        raise UserError("data.train: there is no data to look at; give a file, or a config with data.train or data.eval")
    data = dataclasses.replace(config.data, on_bad_row="skip")  # all that are malformed are listed
    config = dataclasses.replace(config, data=data)
    known, vocabulary = _tokenizer(config, tokenizer)
    lines = []
    if known is None:
        lines.append(
            "Without a tokenizer lengths in tokens, what is cut, boundaries, chat templates and the first batch are not "
            "checked; --tokenizer PATH, or a config with a model, names one."
        )
    names = [name for name in ("train", "eval") if getattr(data, name) is not None]
    if config.data.train is None:
        names = ["eval"]
    parts = []
    for name in names:
        opened = open_data(data, name, spool_of(config))
        part = _part(config, name, opened, known)
        if known is not None and not parts and len(part.gathered.of):
            part = dataclasses.replace(part, batch=_first_batch(config, name, opened, (known, vocabulary)))
        parts.append(part)
    if len(parts) == 2 and (overlap := overlap_finding(parts[0].gathered, parts[1].gathered)) is not None:
        parts[1] = dataclasses.replace(parts[1], findings=[*parts[1].findings, overlap])
    return DataReport(parts, lines)


def spool_of(config: Config) -> Path:
    """Where streamed rows are kept: in the run's folder, or without one in the user's cache."""
    if config.run.dir is not None:
        return Path(config.run.dir) / "spool"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "align_jax" / "spool"


def write_report(report: DataReport, folder: Path) -> list[str]:
    """Writes report.txt, report.json, a picture where matplotlib is there, and a list of the bad rows of each data set.

    Returns:
      A line of what was not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "report.txt", report.text() + "\n")
    write_whole(folder / "report.json", json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    for part in report.parts:
        bad = [*part.gathered.bad, *(part.measured.refused if part.measured is not None else [])]
        file = folder / f"bad_rows.{part.name.removeprefix('data.')}.jsonl"
        if bad:
            write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in bad))
        else:
            file.unlink(missing_ok=True)  # of an earlier check
    try:
        plot(report, folder / "report.png")
    except MissingPackage as error:
        return [str(error)]
    return []


def check_picture(path: Path) -> None:
    """UserError for a picture that cannot be drawn, before anything else is done."""
    optional("matplotlib", "plots", "a picture of the data")
    if path.suffix.lower() not in _PICTURES:
        raise UserError(f"--plot: {path}: the ending says what is drawn; expected {', '.join(_PICTURES)}")


def plot(report: DataReport, path: Path) -> None:
    """Draws a report.

    Raises:
      UserError: matplotlib is not there, or the file cannot be written.
    """
    optional("matplotlib", "plots", "a picture of the data")
    from align_jax.evaluation.data_plots import draw_data

    draw_data(report, path)


def _tokenizer(config: Config, given: Any) -> tuple[Any, int | None]:
    """The tokenizer, and the size of the model's vocabulary; None where they are not known."""
    model = config.model
    if given is not None and not isinstance(given, str | os.PathLike):
        return given, None
    local = model.path is not None and os.path.isdir(os.path.expanduser(model.path))
    if given is None and (model.config is not None or local):
        source = starting_model(config)
        return source.tokenizer, source.shape.vocab_size
    where = given or model.tokenizer or model.path
    if where is None:
        return None, None
    tokenizer = load_tokenizer(where, "tokenizer" if given else "model.tokenizer")
    if model.chat_template is not None:
        tokenizer.chat_template = read_template(model.chat_template)
    return tokenizer, None


def _part(config: Config, name: str, opened: Opened, tokenizer: Any) -> DataPart:
    shows = not config.log.quiet and config.log.progress is not False
    with Watch(f"reading data.{name}", len(opened.source), "rows", show=shows) as watch:
        gathered = gather(opened, watch.add)
    findings = _of_rows(gathered)
    tables: dict[str, Any] = {"scores": None, "beliefs": belief_tables(gathered, config.data.belief_prior)}
    findings += belief_findings(tables["beliefs"])
    if gathered.has_scores:
        tables["scores"] = score_tables(gathered)
        findings += [*outlier_findings(gathered), *score_findings(gathered, tables["scores"])]
    findings += repeat_findings(gathered)
    measured = None
    if tokenizer is not None and len(gathered.row):
        with Watch(f"tokenizing data.{name}", len(gathered.row), "rows", show=shows) as watch:
            measured = measure(gathered, tokenizer, config.data, watch.add)
        findings += token_findings(measured)
    return DataPart(f"data.{name}", gathered, measured, tables, findings)


def _of_rows(gathered: Gathered) -> list[Finding]:
    """Rows that cannot be read, and columns that are not."""
    findings = [Finding("note", "of_the_source", note) for note in gathered.source.notes]
    if gathered.bad:
        text = f"{len(gathered.bad)} of {gathered.rows} rows are malformed"
        lines = tuple(f"{bad['where']}: {bad['reason']}" for bad in gathered.bad[:LISTED])
        findings.append(Finding("problem", "bad_rows", text, lines, len(gathered.bad)))
    if gathered.unread:
        names = ", ".join(sorted(gathered.unread))
        verb = "is" if len(gathered.unread) == 1 else "are"
        text = f"{len(gathered.unread)} of {len(gathered.columns)} columns {verb} not read by format {gathered.format}: {names}"
        findings.append(Finding("note", "columns_not_read", text, count=len(gathered.unread)))
    return findings


def _objective(config: Config, usual: str | None) -> Objective:
    """What is trained, or what is usual for such data."""
    return config.objective if config.objective is not None else find_objective(usual or "sft")()


def _first_batch(config: Config, name: str, opened: Opened, tokenizer: tuple[Any, int | None]) -> tuple[list[str], list[str]]:
    """The first batch of training (its first groups), with colours and without; one line where there is none."""
    data = config.data
    try:
        encoder = Encoder(tokenizer[0], data, tokenizer[1])
        objective = _objective(config, opened.format.evaluated_as)
        ends = objective.head == "score"
        options = {"arrangement": objective.arrangement, "seed": config.run.seed, "ends": ends, "opened": opened}
        dataset = GroupDataset(data, name, encoder, **options)
        per_step = config.train.groups_per_step
        loader = BatchLoader(dataset, shards=1, groups_per_step=per_step, seed=config.run.seed, shuffle=data.shuffle)
        rows = list(dict.fromkeys(loader.first_rows(1).tolist()))[:_GROUPS]  # a short data set is there several times
        groups = [dataset[i] for i in rows]
        layout = RowLayout(pack=data.pack)
        batch = pack_groups(groups, shards=1, groups_per_shard=len(groups), layout=layout, slots=dataset.slots)
    except UserError as error:
        return ([f"  cannot be made: {error}"],) * 2
    return tuple(shown(batch, tokenizer[0], dataset.where, color) for color in (True, False))
