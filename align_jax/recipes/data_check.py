"""A look at data before anyone pays for training on it: what a file, a folder, a hub id or a config's data are like."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align_jax.config import Config, load_config
from align_jax.config.given import data_of
from align_jax.config.source import parse_overrides
from align_jax.data import BatchLoader, Encoder, GroupDataset, RowLayout, pack_groups
from align_jax.data.formats import FORMATS, spelled, unlike
from align_jax.data.inspect.batches import shown
from align_jax.data.inspect.beliefs import belief_findings, belief_tables, unstated_findings
from align_jax.data.inspect.findings import LISTED, Finding, named, of_all, worst_first
from align_jax.data.inspect.gather import Gathered, gather
from align_jax.data.inspect.members import OneOf, each_of, epoch_line
from align_jax.data.inspect.outliers import outlier_findings
from align_jax.data.inspect.repeats import overlap_finding, repeat_findings, shared_finding
from align_jax.data.inspect.report import DataPart, DataReport
from align_jax.data.inspect.scores import score_findings, score_tables
from align_jax.data.inspect.tokens import measure, token_findings
from align_jax.data.members import members_of
from align_jax.data.opened import Opened, open_data
from align_jax.data.sources import Part, open_source
from align_jax.data.texts import KEY, read_pieces, texts_of
from align_jax.errors import MissingPackage, UserError, optional
from align_jax.files import write_whole
from align_jax.objectives import Objective, find_objective
from align_jax.recipes.models import starting_model
from align_jax.recipes.tokenizer import load_tokenizer, read_template
from align_jax.terminal import Watch, plural

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
    return run(config_of_given(what, overrides, "data check"), tokenizer)


def config_of_given(what: Any, overrides: Sequence[str], command: str) -> Config:
    """The config of data: by its file, folder or hub id, as rows, or as what `Config.of` takes.

    Args:
      overrides: `section.key=value`. command: that it was given to, for errors.

    Raises:
      UserError: none of these.
    """
    if isinstance(what, Config) or (isinstance(what, Mapping) and not _is_data(what)):
        return Config.of(what, *overrides)
    if isinstance(what, str | os.PathLike):
        if not all(isinstance(text, str) for text in overrides):
            raise UserError(f"overrides are texts, section.key=value, one after the other; got {overrides!r}")
        options = parse_overrides([f"--{text.removeprefix('--')}" for text in overrides])
        source, follows = data_of(os.fspath(what), command)
        return load_config(source, [*follows, *options])
    if what is None or isinstance(what, int | float | bytes):
        raise UserError(f"{command}: {what!r} is no data; give a path, rows (a list of dicts, a datasets.Dataset) or a config")
    return Config.of({"data": {"train": what}}, *overrides)


def _is_data(what: Mapping) -> bool:
    """Whether it is a `datasets.DatasetDict`, columns, or the keys of one data set, and not of a config."""
    columns = bool(what) and all(isinstance(value, list) for value in what.values())
    return type(what).__module__.startswith("datasets.") or columns or bool({"path", "name"} & set(what))


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
    sections = {"train": data} if data.train is not None else {}
    sections |= {f"eval.{name}" if name else "eval": section for name, section in data.eval_sets().items()}
    sets: list[list[DataPart]] = []
    mixtures = {}
    for name, section in sections.items():
        which = name.partition(".")[0]
        opened = open_data(section, which, spool_of(config))
        key = "train" if which == "train" or (section.held_out is not None and data.train is not None) else name
        value = section.train if key == "train" else section.eval
        parts = [_part(config, name, one, (known, vocabulary)) for one in each_of(opened, value, f"data.{key}")]
        if known is not None and not sets and any(len(part.gathered.of) for part in parts):
            parts[-1].batch = _first_batch(config, which, opened, (known, vocabulary))
        if name == "train" and opened.format.shares is not None:
            objective = _objective(config, opened.format.evaluated_as)
            mixtures["data.train"] = f"data.train: {epoch_line(opened, data, objective.arrangement)}"
        sets.append(parts)
    _add(sets[0][0], _unread_split(config) if "train" in sections and len(sections) > 1 else None)
    _compare(sets, "train" in sections)
    texts = None if data.eval_text is None else _texts(config, (known, vocabulary))
    return DataReport([part for parts in sets for part in parts], lines, mixtures, texts)


def _texts(config: Config, tokenizer: tuple[Any, int | None]) -> str:
    """A line of what `data.eval_text` holds.

    Raises:
      UserError: it cannot be read.
    """
    data = config.data
    if tokenizer[0] is None:
        found = [text for member in members_of(data.eval_text, KEY) for text in texts_of(member, data, spool_of(config))]
        return f"{KEY}: {plural(len(found), 'text')} of {sum(map(len, found))} characters"
    # A model's context may be shorter than data.max_response_tokens; it cuts pieces, and no text.
    pieces = read_pieces(data, Encoder(tokenizer[0], data, tokenizer[1]), sys.maxsize, spool_of(config))
    return f"{KEY}: {pieces.summary}"


def _add(part: DataPart, finding: Finding | None) -> None:
    if finding is not None:
        part.findings = worst_first([*part.findings, finding])


def _compare(sets: list[list[DataPart]], trained: bool) -> None:
    """Adds to each data set which prompts it shares with those before it; `trained`: whether the first is trained on."""
    for parts in sets:
        for i, part in enumerate(parts):
            for other in parts[:i]:
                _add(part, shared_finding((other.name, other.gathered), part.gathered))
    for part in [part for parts in sets[1:] for part in parts] if trained else ():
        for other in sets[0]:
            name = "the training data" if len(sets[0]) == 1 else other.name
            _add(part, overlap_finding(other.gathered, part.gathered, name))


def _unread_split(config: Config) -> Finding | None:
    """Says of folders with a split for evaluation that it is not read where `data.eval` is a fraction."""
    data = config.data
    if data.held_out is None:
        return None
    found = []
    for member in members_of(data.train, "data.train"):
        folder = None if member.path is None else Path(str(member.path)).expanduser()
        for split in ("test", "validation") if folder is not None and folder.is_dir() else ():
            try:
                open_source(str(folder), Part("train", split, member.subset or data.subset, max_rows=1, shared=True))
            except UserError:
                continue
            if split != (member.split or data.split or "train"):
                found.append(f"{folder}: {split}")
    if not found:
        return None
    text = (
        f"data.eval {data.held_out:g} holds out rows of what is trained on; a split that is there for evaluation is not used; "
    )
    text += "data.eval with the same path, and data.eval_split, would take it"
    return Finding("note", "split_not_used", text, tuple(found), len(found))


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


def _part(config: Config, name: str, one: OneOf, tokenizer: tuple[Any, int | None]) -> DataPart:
    shows = not config.log.quiet and config.log.progress is not False
    opened, name = one.opened, f"data.{name}" + (f".{one.label}" if one.label else "")
    with Watch(f"reading {name}", len(opened.source), "rows", show=shows) as watch:
        gathered = gather(opened, watch.add)
    if one.format is not None:
        gathered.format = spelled(one.format)
    findings = _of_rows(gathered, one.notes)
    tables: dict[str, Any] = {"scores": None, "beliefs": belief_tables(gathered, config.data.belief_prior)}
    findings += [*belief_findings(tables["beliefs"]), *unstated_findings(gathered)]
    if gathered.has_scores:
        tables["scores"] = score_tables(gathered)
        findings += [*outlier_findings(gathered), *score_findings(gathered, tables["scores"])]
    findings += repeat_findings(gathered)
    measured = None
    if tokenizer[0] is not None and len(gathered.row):
        with Watch(f"tokenizing {name}", len(gathered.row), "rows", show=shows) as watch:
            measured = measure(gathered, tokenizer[0], config.data, watch.add, tokenizer[1])
        findings += token_findings(measured)
    return DataPart(name, gathered, measured, tables, findings)


def _of_rows(gathered: Gathered, notes: Sequence[str]) -> list[Finding]:
    """Rows that cannot be read, and columns that are not."""
    findings = [Finding("note", "of_the_source", note) for note in notes]
    if gathered.bad:
        text = of_all(len(gathered.bad), gathered.rows, "row", "are") + " malformed"
        lines = tuple(f"{bad['where']}: {bad['reason']}" for bad in gathered.bad)
        findings.append(Finding("problem", "bad_rows", text, lines, len(gathered.bad), LISTED))
    if gathered.unread and len(gathered.row):
        text = of_all(len(gathered.unread), len(gathered.columns), "column", "are")
        text += f" not read by format {gathered.format}: {named(sorted(map(str, gathered.unread)))}"
        row = gathered.source[int(gathered.row[0])]
        if gathered.format in FORMATS and (other := unlike(row, FORMATS[gathered.format])):
            text += f"; {other}"
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
        return ([f"cannot be made: {error}"],) * 2
    return tuple(shown(batch, tokenizer[0], dataset.where, color) for color in (True, False))
