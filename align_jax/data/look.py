"""One look through the rows of a source, before any is tokenized."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from align_jax.data.arrange.survey import Item
from align_jax.data.config import DataConfig
from align_jax.data.encode import plain_key
from align_jax.data.formats.example import Example
from align_jax.data.formats.messages import is_empty
from align_jax.data.mixture import Shares
from align_jax.data.reading import LeftOut
from align_jax.data.sources import RowError, Source
from align_jax.errors import UserError
from align_jax.terminal import plural


def read_rows(
    source: Source,
    read: Callable[[Mapping], Example],
    on_bad_row: str,
    bad: list[dict[str, str]],
    left_out: list[LeftOut] | None = None,
    check: Callable[[int, Example], None] | None = None,
) -> Iterator[tuple[int, Example]]:
    """Number and example of every row that is not malformed, each read once.

    Args:
      on_bad_row: `error` or `skip`.
      bad: `{"where", "reason"}` of each malformed row is added to it.
      left_out: why rows are left out on purpose is added to it, for each.
      check: raises a RowError for a row that cannot be used though it is well formed.

    Raises:
      UserError: a malformed row (unless skipped), or no other is left.
    """
    for row in range(len(source)):
        try:
            example = read(source[row])
            if check is not None:
                check(row, example)
        except LeftOut as why:
            if left_out is not None:
                left_out.append(why)
        except RowError as error:
            if on_bad_row == "error":
                raise UserError(f"{source.where(row)}: {error} (data.on_bad_row: skip leaves such rows out)") from error
            bad.append({"where": source.where(row), "reason": str(error)})
        else:
            yield row, example
    if len(bad) == len(source):
        raise UserError(f"all {len(source)} rows are malformed, the first: {bad[0]['where']}: {bad[0]['reason']}")


class Look:
    """What is seen of all rows whatever they are arranged for; no example is kept.

    Attributes:
      rows: numbers of the rows that were seen. left_out: why rows were left out on purpose.
      source_names: the data sets of a mixture, in the order in which they came up; of one alone, none.
    """

    def __init__(self):
        self.rows: list[int] = []
        self.left_out: list[LeftOut] = []
        self._responses = self._empty = self._dropped = 0
        self._sources: dict[str, int] = {}
        self._source_of: list[int] = []
        self._groups: set[str] = set()
        self._has_context = self._begins_with_text = False
        self._prompts: dict[str, int] = {}
        self._units: dict[bytes, int] = {}
        self._prompt_of: list[int] = []
        self._unit_of: list[int] = []

    def at(self, rows: Iterable[tuple[int, Example]]) -> Iterator[tuple[int, Example]]:
        """Hands rows on, looking at each."""
        for row, example in rows:
            if not self.rows:
                self._begins_with_text = isinstance(example.prompt, str)
            self.rows.append(row)
            self._groups.add(example.group)
            self._source_of.append(self._sources.setdefault(example.source, len(self._sources)))
            self._responses += len(example.responses) + example.left_out
            self._empty += sum(map(is_empty, example.responses))
            self._dropped += example.left_out
            self._has_context |= bool(example.context)
            prompt = repr((example.prompt, example.context))
            unit = hashlib.sha256(plain_key(example).encode(errors="surrogatepass")).digest()
            self._prompt_of.append(self._prompts.setdefault(prompt, len(self._prompts)))
            self._unit_of.append(self._units.setdefault(unit, len(self._units)))
            yield row, example

    @property
    def group_names(self) -> tuple[str, ...]:
        """The values of the `group` column, sorted."""
        return tuple(sorted(self._groups - {""}))

    @property
    def source_names(self) -> tuple[str, ...]:
        return tuple(name for name in self._sources if name)

    def epoch(self, items: Sequence[Item], shares: Shares | None) -> tuple[list[Item], list[str]]:
        """The groups of an epoch of a mixture, as its weights ask for, and a line about them; of other data, what there is."""
        if shares is None:
            return list(items), []
        names = list(self._sources)
        number = np.asarray([shares.labels.index(name) for name in names], np.int64)
        at = np.searchsorted(self.rows, [item.row for item in items])
        sources = number[np.asarray(self._source_of, np.int64)[at]] if len(items) else np.zeros(0, np.int64)
        return shares.epoch(items, sources), [shares.describe(sources)]

    def notes(self) -> list[str]:
        """Lines about empty answers."""
        lines = []
        if self._empty:
            lines.append(
                f"{self._empty} of {self._responses} answers {'is' if self._empty == 1 else 'are'} empty: the end token alone "
                "(data.on_empty: drop leaves them out)"
            )
        if self._dropped or self.left_out:
            parts = [plural(self._dropped, "empty answer")] if self._dropped else []
            parts += [f"{plural(count, 'row')} ({why})" for why, count in Counter(map(str, self.left_out)).items()]
            lines.append(f"data.on_empty: drop: left out {', '.join(parts)}")
        return lines

    def ids(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The prompt and the unit (prompt, group and options) of some rows, int `[rows]` each.

        Equal ones have one number; prompts are numbered from 0 in the order of their texts.
        """
        at = np.searchsorted(self.rows, rows)
        prompts, units = (np.asarray(of, np.int64)[at] for of in (self._prompt_of, self._unit_of))
        texts = list(self._prompts)
        rank = np.zeros(len(texts), np.int64)
        ordered = sorted(np.unique(prompts).tolist(), key=texts.__getitem__)
        rank[ordered] = np.arange(len(ordered))
        return rank[prompts], units

    def check_template(self, config: DataConfig, path: str) -> None:
        """UserError for a template that uses a column which no row has, or that is for other prompts."""
        for name, there in (("group", bool(self.group_names)), ("context", self._has_context)):
            if f"{{{name}}}" in config.prompt_template and not there:
                raise UserError(f"data.prompt_template uses {{{name}}}, but no row of {path} has a field {name!r}")
        if config.prompt_template != DataConfig().prompt_template and not self._begins_with_text:
            raise UserError(
                f"data.prompt_template {config.prompt_template!r} is for plain prompts, but {path} holds conversations"
            )
