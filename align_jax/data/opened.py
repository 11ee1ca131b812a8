"""`data.train` or `data.eval` as a source and the format of its rows."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from align_jax.data.config import DataConfig
from align_jax.data.formats import AUTO, Format, find_format, recognized
from align_jax.data.held_out import chosen_prompts, prompt_digest
from align_jax.data.members import Member, members_of, named_sets
from align_jax.data.mixture import Concatenated, Shares
from align_jax.data.named import find_named
from align_jax.data.reading import Reading, check_parts
from align_jax.data.sources import RowError, Selected, Source, open_source
from align_jax.errors import UserError
from align_jax.terminal import plural


class Opened(NamedTuple):
    """Rows, what they mean, and the path that they are of (of a mixture, all that it consists of)."""

    source: Source
    format: Reading
    path: str


def open_data(config: DataConfig, which: str, spool_dir: str | Path | None) -> Opened:
    """Opens what a key of the data section names.

    Where `config.eval` is a fraction, a hash of each prompt says which are held out: the same ones whatever the run's seed, so
    that a run is never evaluated on what another seed trained on.

    Args:
      config: the data section. which: `train` or `eval`.
      spool_dir: where streamed rows are kept.

    Raises:
      UserError: nothing is named, or it cannot be read; columns that are those of no format.
    """
    fraction = config.held_out
    if which == "eval" and (sets := named_sets(config.eval)) is not None:
        raise UserError(
            f"data.eval: one set is read here, and these are {len(sets)} by name: {', '.join(sets)}; give one of them"
        )
    held_out = which == "eval" and fraction is not None
    key = "train" if which == "train" or held_out else "eval"
    value = getattr(config, key)
    if value is None:
        raise UserError(f"data.{key} is not set")
    members = members_of(value, f"data.{key}")
    if key == "eval" and any(member.weight is not None for member in members):
        raise UserError(
            "data.eval: an evaluation takes every row once, and gives the metrics of each data set; leave `weight` out"
        )
    spool = Path(spool_dir) if spool_dir is not None else None
    opened = [_open(config, member, key, spool, len(members) > 1) for member in members]
    labels = [member.called for member in members] if len(members) > 1 else []
    reading = Reading([data_format for _, data_format in opened], labels, config.on_empty)
    reading.by_columns = len(members) == 1 and config.format == AUTO and members[0].name is members[0].format is None
    source = opened[0][0]
    if labels:
        check_parts(f"data.{key}", reading.parts, labels)
        weights = tuple(member.weight for member in members)
        reading.shares = Shares(tuple(labels), weights if weights[0] is not None else None)
        names = [data_format.name for data_format in reading.parts]
        source = Concatenated([part for part, _ in opened], (labels, names, reading.shares.weights))
    if held_out and config.eval_split not in (None, "test"):  # the latter stands in configs of before
        note = f"data.eval_split {config.eval_split} has no effect: data.eval is a fraction of data.train"
        source.notes = (*source.notes, note)
    if fraction is not None:
        source = _part(source, reading, fraction, held_out)
    return Opened(source, reading, " + ".join(map(_path, members)))


def _path(member: Member) -> str:
    return str(member.path) if member.path is not None else find_named(member.name, "name").hub


def _open(config: DataConfig, member: Member, key: str, spool_dir: Path | None, several: bool = False) -> tuple[Source, Format]:
    """The rows of one data set, a row a group, and their format; `several`: it is one of a mixture."""
    known = find_named(member.name, f"data.{key}.name") if member.name is not None else None
    if known is not None and AUTO != config.format != known.format and member.format is None:
        raise UserError(f"data.format: {config.format!r}, but {member.name} has format {known.format!r}; leave data.format out")
    split = config.split if key == "train" else config.eval_split
    if known is not None and member.path is None:
        split = known.split if key == "train" else known.eval_split
    if member.split is None and split is None and known is not None and member.path is None:
        raise UserError(
            f"data.{key}: {member.name} has no split for evaluation; give data.eval a fraction of data.train, such as 0.05, or "
            "a `split`"
        )
    inherited = {name: getattr(member, name) or getattr(config, name) for name in ("subset", "revision")}
    if known is not None and member.path is None:
        inherited["subset"] = inherited["subset"] or known.subset
    limits = [limit for limit in (member.limit, config.max_rows) if limit is not None]
    usual = config.part(key)
    part = dataclasses.replace(
        usual,
        split=member.split or split,
        streaming=config.streaming if member.streaming is None else member.streaming,
        max_rows=min(limits, default=None),
        **inherited,
        shared=usual.shared or (several and member.subset is member.revision is None),
    )
    source = open_source(member.path or known.hub, part, spool_dir=spool_dir)
    if member.limit is not None:  # the digest of a file may be that of all its rows
        source.digest = hashlib.sha256(f"{source.digest} {len(source)}".encode()).hexdigest()
    chosen = member.format or (known.format if known is not None else config.format)
    data_format = format_of(dataclasses.replace(config, format=chosen), source)
    return data_format.arranged(source), data_format


def format_of(config: DataConfig, source: Source) -> Format:
    """The format of `data.format`; with `auto` that of the columns of the first row that can be read at all, or with
    `on_bad_row: skip` of the first one that has those of a format.

    Raises:
      UserError: columns that are those of no format.
    """
    if config.format != AUTO:
        return find_format(config.format)
    problem = ""
    for number in range(len(source)):
        try:
            row: Mapping = source[number]
        except RowError as error:
            problem = problem or f"{source.where(number)}: {error}"
            continue
        try:
            found = recognized(row, source.where(number))
            if found.name == "pairs" and str(row["chosen"]).startswith("\n\nHuman:"):
                note = "dialogues are read as plain text; data.format: hh makes conversations of them, for a chat template"
                source.notes = (*source.notes, note)
            return found
        except UserError as error:
            if config.on_bad_row == "error":
                raise
            problem = problem or str(error)
    raise UserError(f"data.format is auto, but the format of no row is known, the first: {problem}")


def _part(source: Source, data_format: Format, fraction: float, held_out: bool) -> Source:
    """The rows whose prompts are held out, or the others; of each data set of a mixture so many. Rows of one prompt stay
    together, whatever group, context and options they have; malformed ones are not held out.
    """
    prompts: list[bytes | None] = []
    distinct: dict[int, set[bytes]] = {}
    bad: list[str] = []
    rule = ""
    for number in range(len(source)):
        try:
            row = source[number]
            example = data_format.read(row)
        except RowError as error:
            prompts.append(None)
            bad = bad or [f"{source.where(number)}: {error}"]
        else:
            prompts.append(prompt_digest(example))
            if example.group or example.context or example.opinion or example.tools or example.documents:
                rule = " by prompt"  # earlier versions held out others of such rows
            distinct.setdefault(getattr(row, "part", 0), set()).add(prompts[-1])
    chosen = set().union(*(chosen_prompts(found, fraction) for found in distinct.values()))
    if not chosen:
        most, malformed = max(map(len, distinct.values()), default=0), prompts.count(None)
        if bad and malformed == len(prompts):
            every = "all " if malformed > 1 else ""
            raise UserError(f"{every}{plural(malformed, 'row is', 'rows are')} malformed, the first: {bad[0]}")
        also = f"; {plural(malformed, 'row is', 'rows are')} malformed, the first: {bad[0]}" if bad else ""
        raise UserError(f"data.eval: {fraction} of data.train cannot be held out: it has {most} different prompts{also}")
    rows = [number for number, prompt in enumerate(prompts) if (prompt in chosen) == held_out]
    digest = hashlib.sha256(f"{source.digest} {fraction} {held_out}{rule}".encode()).hexdigest()
    return Selected(source, rows, digest)
