"""A data set as token groups, by number."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.data.arrange import LAYOUTS, Arranger, survey
from align_jax.data.config import DataConfig
from align_jax.data.encode import Encoder
from align_jax.data.formats import READERS, Example
from align_jax.data.packing.plan import GroupSize, group_size
from align_jax.data.records import TokenGroup
from align_jax.data.sources import RowError, Source, open_source
from align_jax.errors import UserError

# Keys of the data section that do not change any token or label.
_HOW = ("workers", "prefetch", "pack", "shuffle", "train", "eval", "split", "eval_split", "streaming", "on_bad_row")
_SAMPLE = 256  # groups whose lengths stand for those of all


class GroupDataset:
    """Token groups of a source, arranged for an objective; tokenized when asked for.

    Args:
      config: the data section.
      which: `train` or `eval`: whether `config.train` or `config.eval` is read.
      encoder: text to tokens.
      layout: what the objective needs, see `align_jax.data.arrange`.
      preference: for layout `gdpo`: dpo, kto or mpo.
      seed: of everything that is drawn.
      spool_dir: where streamed rows are kept.
      ends: as `TokenGroup.ends`: for a reward model.

    Attributes:
      path: what is read. slots: K. group_names: values of the `group` column.
      bad_rows: `{"where", "reason"}` of each malformed row that was skipped.
      fingerprint: a hash of content, templates, lengths and layout, for caches.

    Raises:
      UserError: a malformed row (unless `on_bad_row` is skip), naming file, line and field; nothing to read.
    """

    def __init__(
        self,
        config: DataConfig,
        which: str,
        encoder: Encoder,
        *,
        layout: str,
        preference: str = "dpo",
        seed: int = 0,
        spool_dir: str | Path | None = None,
        ends: bool = False,
    ):
        if layout not in LAYOUTS:
            raise ValueError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
        self.path = config.train if which == "train" else config.eval
        if self.path is None:
            raise UserError(f"data.{which} is not set")
        split = config.split if which == "train" else config.eval_split
        spool = Path(spool_dir) if spool_dir is not None else None
        self._source = open_source(
            self.path, split=split, streaming=config.streaming, max_rows=config.max_rows, spool_dir=spool
        )
        self._read = READERS[config.format]
        good, self.bad_rows = check_rows(self._source, self._read, config.on_bad_row)
        self._check_template(config, good)
        self._found = survey(self.example, good, layout, preference, config)
        self._config, self._ends = config, ends
        self._arrange = Arranger(self.example, self._found, encoder, layout, preference, seed, ends)
        self.slots, self.group_names = self._found.slots, self._found.group_names
        how = {k: v for k, v in dataclasses.asdict(config).items() if k not in _HOW}
        parts = (self._source.digest, encoder.key(), sorted(how.items()), layout, preference, seed, len(good))
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()

    def _check_template(self, config: DataConfig, rows: list[int]) -> None:
        """UserError for a template that uses a column which no row has."""
        for name in ("group", "context"):
            if f"{{{name}}}" in config.prompt_template and not any(getattr(self.example(row), name) for row in rows):
                raise UserError(f"data.prompt_template uses {{{name}}}, but no row of {self.path} has a field {name!r}")
        if config.prompt_template != DataConfig().prompt_template and not isinstance(self.example(rows[0]).prompt, str):
            raise UserError(
                f"data.prompt_template {config.prompt_template!r} is for plain prompts, but {self.path} holds conversations"
            )

    def example(self, row: int) -> Example:
        """Row `row` of the source, checked."""
        return self._read(self._source[row])

    def example_of(self, index: int) -> Example:
        """The row that a group is made of."""
        return self.example(self._found.items[index].example)

    def where(self, index: int) -> str:
        """The place of a group's row, for errors."""
        return self._source.where(self._found.items[index].example)

    def __len__(self) -> int:
        return len(self._found.items)

    def __getitem__(self, index: int) -> TokenGroup:
        try:
            return self._arrange(int(index))
        except RowError as error:
            raise UserError(f"{self.where(index)}: {error}") from error

    @functools.cached_property
    def sizes(self) -> list[GroupSize]:
        """Lengths of a sample of the groups, always the same one."""
        drawn = np.random.default_rng(0).permutation(len(self))[:_SAMPLE]
        return [group_size(self[i]) for i in drawn]

    @property
    def limits(self) -> tuple[int, int]:
        """Positions of the longest prompt that there may be, and of the longest response."""
        return max(1, self._config.max_prompt_tokens - 1), self._config.max_response_tokens + self._ends

    def describe(self) -> str:
        """One line: groups, responses, and what was left out."""
        parts = [f"{len(self)} groups of up to {self.slots} responses from {len(self._source)} rows of {self.path}"]
        if self.bad_rows:
            parts.append(f"{len(self.bad_rows)} malformed rows skipped")
        if self._found.dropped:
            what = "a desirable completion" if self._config.format == "unpaired" else "contrast"
            parts.append(f"{self._found.dropped} rows without {what} dropped")
        if self._found.level:
            parts.append(f"{self._found.level} of the groups have one score for all responses, which gives no contrast")
        return ", ".join(parts)

    def __repr__(self) -> str:  # grain prints data sets in errors; the contents stay out
        return f"GroupDataset({self.path!r})"


def check_rows(
    source: Source, read: Callable[[Mapping], Example], on_bad_row: str
) -> tuple[list[int], list[dict[str, str]]]:
    """Reads every row once, so that a malformed one is known before any work is done.

    Args:
      on_bad_row: `error` or `skip`.

    Returns:
      The rows that are not malformed, and `{"where", "reason"}` of each that is.

    Raises:
      UserError: a malformed row (unless skipped), or no other is left.
    """
    good, bad = [], []
    for row in range(len(source)):
        try:
            read(source[row])
            good.append(row)
        except RowError as error:
            if on_bad_row == "error":
                raise UserError(f"{source.where(row)}: {error} (data.on_bad_row: skip leaves such rows out)") from error
            bad.append({"where": source.where(row), "reason": str(error)})
    if not good:
        raise UserError(f"all {len(source)} rows are malformed, the first: {bad[0]}")
    return good, bad


def labelled(group: TokenGroup, tables: dict[str, Any]) -> TokenGroup:
    """The group with its row of each table `[rows, K]` as a label."""
    more = {name: table[group.row, : group.slots] for name, table in tables.items()}
    return dataclasses.replace(group, labels={**group.labels, **more})
