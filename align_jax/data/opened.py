"""`data.train` or `data.eval` as a source and the format of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from align_jax.data.config import DataConfig
from align_jax.data.encode import plain_key
from align_jax.data.formats import AUTO, Format, find_format, recognized
from align_jax.data.sources import RowError, Selected, Source, open_source
from align_jax.errors import UserError


class Opened(NamedTuple):
    """Rows, what they mean, and the path that they are of."""

    source: Source
    format: Format
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
    fraction = config.eval if isinstance(config.eval, float | int) else None
    held_out = which == "eval" and fraction is not None
    path = config.train if which == "train" or held_out else config.eval
    if path is None:
        raise UserError(f"data.{'train' if held_out else which} is not set")
    source = open_source(
        path, config.part("train" if held_out else which), spool_dir=Path(spool_dir) if spool_dir is not None else None
    )
    if held_out and config.eval_split not in (None, "test"):  # the latter stands in configs of before
        note = f"data.eval_split {config.eval_split} has no effect: data.eval is a fraction of data.train"
        source.notes = (*source.notes, note)
    data_format = format_of(config, source)
    if fraction is not None:
        source = _part(source, data_format, fraction, held_out)
    return Opened(source, data_format, path)


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
            return recognized(row, source.where(number))
        except UserError as error:
            if config.on_bad_row == "error":
                raise
            problem = problem or str(error)
    raise UserError(f"data.format is auto, but the format of no row is known, the first: {problem}")


def _part(source: Source, data_format: Format, fraction: float, held_out: bool) -> Source:
    """The rows whose prompts are held out, or the others; rows of one prompt stay together, malformed ones are not held out."""
    prompts: list[bytes | None] = []
    for number in range(len(source)):
        try:
            key = plain_key(data_format.read(source[number]))
        except RowError:
            prompts.append(None)
        else:
            prompts.append(hashlib.sha256(key.encode(errors="surrogatepass")).digest())
    distinct = sorted({prompt for prompt in prompts if prompt is not None})
    if len(distinct) < 2:
        raise UserError(f"data.eval: {fraction} of data.train cannot be held out: it has {len(distinct)} different prompts")
    chosen = set(distinct[: min(max(1, round(fraction * len(distinct))), len(distinct) - 1)])
    rows = [number for number, prompt in enumerate(prompts) if (prompt in chosen) == held_out]
    digest = hashlib.sha256(f"{source.digest} {fraction} {held_out}".encode()).hexdigest()
    return Selected(source, rows, digest)
