"""A data set as token groups, by number."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.data.arrange import Arrangement, Arranger
from align_jax.data.config import LATER, DataConfig
from align_jax.data.encode import Encoder
from align_jax.data.formats import Format, spelled, unlike
from align_jax.data.formats.example import Example
from align_jax.data.look import Look, read_rows
from align_jax.data.opened import Opened, open_data
from align_jax.data.packing.plan import GroupSize, group_size
from align_jax.data.records import TokenGroup
from align_jax.data.rendered import Rendered
from align_jax.data.sources import RowError
from align_jax.errors import UserError
from align_jax.terminal import plural

# Keys of the data section that do not change any token or label, but for the day: the encoder's key knows one that is printed.
_HOW = ("workers", "prefetch", "pack", "shuffle", "train", "eval", "eval_text", "split", "eval_split", "subset", "revision",
        "streaming", "on_bad_row", "date")  # fmt: skip
_SAMPLE = 256  # groups whose lengths stand for those of all


class GroupDataset:
    """Token groups of a source, arranged for an objective; every row is read once here, and tokenized when asked for.

    Args:
      config: the data section.
      which: `train` or `eval`: whether `config.train` or `config.eval` is read.
      encoder: text to tokens.
      arrangement: what the objective needs, `Objective.arrangement`.
      seed: of everything that is drawn.
      spool_dir: where streamed rows are kept.
      ends: as `TokenGroup.ends`: for a reward model.
      opened: what `open_data` gave for `which`; None opens it here.

    Attributes:
      path: what is read. format: the name of its format. slots: K. group_names: values of the `group` column.
      source_names: the data sets of a mixture, if it is one.
      without_contrast: whether no group has two different scores and texts, of an arrangement that keeps such groups.
      notes: lines for the user: shares of a mixture, empty answers, columns that are not read.
      bad_rows: `{"where", "reason"}` of each malformed row that was skipped.
      prompt_ids, unit_ids: int `[groups]`; groups with one prompt (and context) have the same `prompt_ids`, those that also
        share `group` and options the same `unit_ids`. Prompts are numbered in the order of their texts.
      fingerprint: a hash of content, templates, lengths and arrangement, for caches.

    Raises:
      UserError: a malformed row (unless `on_bad_row` is skip), naming file, line and field; nothing to read; a format that
        cannot serve the arrangement.
    """

    def __init__(
        self,
        config: DataConfig,
        which: str,
        encoder: Encoder,
        *,
        arrangement: Arrangement,
        seed: int = 0,
        spool_dir: str | Path | None = None,
        ends: bool = False,
        opened: Opened | None = None,
    ):
        self._source, data_format, self.path = opened or open_data(config, which, spool_dir)
        self._by_columns = data_format.by_columns
        self._check(arrangement, data_format)
        self.format = spelled(data_format)
        self._read, self.bad_rows, look = data_format.read, [], Look()
        asked = (config.on_empty, config.prompt_template, config.belief_template, config.score, config.control_tokens,
                 config.max_response_tokens)  # fmt: skip
        texts = repr((self._source.digest, len(self._source), self.format, *asked))
        rendered = Rendered(encoder, texts, None if spool_dir is None else Path(spool_dir))

        def check(row: int, example: Example) -> None:
            arrangement.check(example)
            rendered.check(row, example)

        rows = read_rows(self._source, self._read, config.on_bad_row, self.bad_rows, look.left_out, check)
        self._found = arrangement.survey(look.at(rows), config)
        rendered.keep()
        look.check_template(config, self.path)
        if not self._found.items:
            raise UserError(f"no group is left: none of the {len(look.rows)} rows has {arrangement.needs}")
        self.without_contrast = self._found.level == len(self._found.items)
        items, mixed = look.epoch(self._found.items, data_format.shares if which == "train" else None)
        self._found = dataclasses.replace(self._found, items=items)
        self.notes = [
            *mixed,
            *self._found.notes,
            *look.notes(),
            *rendered.notes(),
            *([] if _is_held_out(config, which) else data_format.notes()),
        ]
        self._config, self._ends, self._arrangement = config, ends, arrangement
        self.slots, self.group_names = self._found.slots, look.group_names
        self.source_names = look.source_names if len(look.source_names) > 1 else ()
        self.prompt_ids, self.unit_ids = look.ids([item.row for item in self._found.items])
        self._arranger = Arranger(
            self.example,
            self._found,
            encoder,
            seed=seed,
            group_names=self.group_names,
            source_names=self.source_names,
            of=f"data.{which}, {self.path}",
            ends=ends,
        )
        how = {k: v for k, v in dataclasses.asdict(config).items() if k not in _HOW and (k not in LATER or v != LATER[k])}
        how["format"] = self.format
        parts = (self._source.digest, encoder.key(), sorted(how.items()), *arrangement.key(), seed, len(look.rows))
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()

    def _check(self, arrangement: Arrangement, data_format: Format) -> None:
        """UserError where the format cannot serve, with the columns where it was known by them."""
        problem = next(filter(None, map(arrangement.refusal, data_format.parts)), None)
        if problem is not None and self._by_columns:
            problem = f"{self.path}: by the columns of its first row ({', '.join(data_format.columns)}): {problem}"
            with contextlib.suppress(RowError):
                if other := unlike(self._source[0], data_format.representative):
                    problem = f"{problem}; {other}"
        if problem is not None:
            raise UserError(problem)

    def example(self, row: int) -> Example:
        """Row `row` of the source, checked."""
        return self._read(self._source[row])

    def example_of(self, index: int) -> Example:
        """The row that a group is made of."""
        return self.example(self._found.items[index].row)

    def where(self, index: int) -> str:
        """The place of a group's row, for errors."""
        return self._source.where(self._found.items[index].row)

    def __len__(self) -> int:
        return len(self._found.items)

    def __getitem__(self, index: int) -> TokenGroup:
        try:
            return self._arrangement.group(int(index), self._arranger)
        except RowError as error:
            raise UserError(f"{self.where(index)}: {error}") from error

    @property
    def sizes(self) -> list[GroupSize]:
        """Lengths of a sample of the groups, always the same one."""
        return self._sample[0]

    @functools.cached_property
    def _sample(self) -> tuple[list[GroupSize], np.ndarray]:
        """Sizes of groups, and int `[groups, 2]`: how many prompts and how many responses of each were cut."""
        drawn = [self[i] for i in np.random.default_rng(0).permutation(len(self))[:_SAMPLE]]
        return [group_size(group) for group in drawn], np.stack([group.labels["truncated"] for group in drawn])

    @property
    def cut(self) -> str:
        """A line about the texts of the sample that are cut; empty where none is."""
        counts = (self._sample[1] > 0).sum(0).tolist()
        of = f"{'all' if len(self) <= _SAMPLE else 'a sample of'} {plural(len(self._sample[1]), 'group')}"
        limits = [("a prompt", "max_prompt_tokens"), ("a response", "max_response_tokens")]
        found = [
            f"{count} with {what} that is cut to {getattr(self._config, key)} tokens (data.{key})"
            for count, (what, key) in zip(counts, limits, strict=True)
            if count
        ]
        return f"of {of} {' and '.join(found)}" if found else ""

    @property
    def limits(self) -> tuple[int, int]:
        """Positions of the longest prompt that there may be, and of the longest response."""
        return max(1, self._config.max_prompt_tokens - 1), self._config.max_response_tokens + self._ends

    def describe(self) -> str:
        """One line: groups, responses, and what was left out."""
        made = f"{plural(len(self), 'group')} of up to {plural(self.slots, 'response')}"
        parts = [f"{made} from {plural(len(self._source), 'row')} of {self.path}"]
        if self._by_columns:
            parts.append(f"read as format {self.format}, by its columns")
        if self.bad_rows:
            parts.append(f"{plural(len(self.bad_rows), 'malformed row')} skipped")
        if self._found.dropped:
            parts.append(f"{plural(self._found.dropped, 'row')} without {self._arrangement.needs} dropped")
        if self._found.level:
            parts.append(f"{self._found.level} of the groups have one score or one text for all responses, so no contrast")
        return ", ".join(parts)

    def __repr__(self) -> str:  # grain prints data sets in errors; the contents stay out
        return f"GroupDataset({self.path!r})"


def _is_held_out(config: DataConfig, which: str) -> bool:
    """Whether these are rows of `data.train`, of whose columns was spoken."""
    return which == "eval" and isinstance(config.eval, float | int)


def labelled(group: TokenGroup, tables: dict[str, Any]) -> TokenGroup:
    """The group with its row of each table `[rows, K]` as a label."""
    more = {name: table[group.row, : group.slots] for name, table in tables.items()}
    return dataclasses.replace(group, labels={**group.labels, **more}, per_response=(*group.per_response, *more))
