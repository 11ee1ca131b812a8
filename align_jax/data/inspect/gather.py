"""One pass over all rows, after which no text is kept: columns of numbers, one value a row or a response."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from align_jax.data.encode import plain_key
from align_jax.data.formats import spelled as name_of_format
from align_jax.data.formats.example import Example, Opinion
from align_jax.data.formats.messages import is_empty
from align_jax.data.inspect import texts
from align_jax.data.opened import Opened
from align_jax.data.reading import LeftOut, Noted
from align_jax.data.sources import RowError, Source, rows_read

_OTHERS = 5  # prompts before it with which a row's own is compared


@dataclasses.dataclass
class Gathered:
    """All rows of a source in numbers.

    Attributes:
      path: what was read. source, read: to look at a row again. format: the name of its format. rows: how many there are.
      bad: `{"where", "reason"}` of the malformed ones. columns: name -> rows that have a value. unread: those of them that the
        format does not read.
      row: source row of each good row. prompt, unit: numbers of equal prompts; of equal prompts, groups and options.
      group: index into `groups`, -1 for none. size: how many responses it has. opinions: of each good row.
      left_out: rows without answers but empty ones, with `data.on_empty: drop`.
      of, which: good row (position) and number in it of each response. score: NaN for none. characters: its length.
      text: a number of its words, whatever their case and spaces; exact: of all its signs. bands `[m, 4]`, edges `[m, 2]`:
        for near-duplicates. model: index into `models`, -1.
      relevance: 1 where it shares more words with its prompt than with others, 0 where fewer, else 1/2; NaN: not known.
      empty: whether it is blank.
    """

    path: str
    source: Source
    read: Callable[[Mapping], Example]
    format: str
    has_beliefs: bool
    rows: int
    bad: list[dict[str, str]]
    columns: dict[str, int]
    unread: dict[str, int]
    groups: list[str]
    models: list[str]
    row: np.ndarray
    prompt: np.ndarray
    unit: np.ndarray
    group: np.ndarray
    size: np.ndarray
    opinions: list[Opinion | None]
    prompt_texts: dict[bytes, int]
    left_out: int
    of: np.ndarray
    which: np.ndarray
    score: np.ndarray
    characters: np.ndarray
    text: np.ndarray
    bands: np.ndarray
    edges: np.ndarray
    model: np.ndarray
    relevance: np.ndarray
    empty: np.ndarray
    exact: np.ndarray

    def where(self, position: int) -> str:
        """The place of a good row, for people."""
        return self.source.where(int(self.row[position]))

    def example(self, position: int) -> Example:
        """A good row, read again."""
        return self.read(self.source[int(self.row[position])])

    def answer(self, response: int) -> str:
        """The text of a response, read again."""
        return texts.plain(self.example(int(self.of[response])).responses[int(self.which[response])])

    def examples(self) -> Iterator[tuple[int, Example]]:
        """Position and example of all good rows, read again."""
        for position in range(len(self.row)):
            yield position, self.example(position)

    @property
    def has_scores(self) -> bool:
        """Whether responses have scores that are about their quality."""
        return bool(np.isfinite(self.score).any()) and not self.has_beliefs


class Noting:
    """Reads rows, and notes of each which columns were read.

    Args:
      read: of a format.
    """

    def __init__(self, read: Callable[[Mapping], Example]):
        self._read, self._known = read, set()

    def __call__(self, row: Mapping) -> tuple[Example, Noted]:
        """The example, and the row with `read`, the columns that it was made of."""
        part = getattr(row, "part", 0)
        if part not in self._known:  # what `data` says of its first row itself comes first
            self._read(row)
            self._known.add(part)
        noted = Noted(row)
        noted.part = part
        return self._read(noted), noted


class _Numbers(dict):
    """Things that are met, numbered in that order."""

    def of(self, thing: Any) -> int:
        return self.setdefault(thing, len(self))


def gather(opened: Opened, progress: Callable[[int], None] = lambda count: None) -> Gathered:
    """Reads every row of what was opened, malformed ones too.

    Args:
      progress: called with 1 after each row.
    """
    source, data_format, path = opened[:3]
    rows: dict[str, list] = collections.defaultdict(list)
    found: dict[str, list] = collections.defaultdict(list)
    columns, read_columns = collections.Counter(), set()
    prompts, units, groups, models = _Numbers(), _Numbers(), _Numbers(), _Numbers()
    bad, opinions, around = [], [], collections.deque(maxlen=_OTHERS)
    left_out = 0
    read = Noting(data_format.read)
    for number in range(len(source)):
        progress(1)
        try:
            given = source[number]
            columns.update(name for name, value in given.items() if value is not None)
            example, row = read(given)
        except LeftOut:
            left_out += 1
            continue
        except RowError as error:
            bad.append({"where": source.where(number), "reason": str(error)})
            continue
        read_columns |= row.read
        prompt = texts.plain(example.prompt)
        rows["row"].append(number)
        rows["prompt"].append(prompts.of(_digest(repr((example.prompt, example.context)))))
        rows["unit"].append(units.of(_digest(plain_key(example))))
        rows["group"].append(groups.of(example.group) if example.group != "" else -1)
        rows["size"].append(len(example.responses))
        opinions.append(example.opinion)
        about = texts.content_words(prompt)
        _responses(found, example, len(rows["row"]) - 1, (about, around), [models.of(m) for m in models_of(row, example)])
        if not around or around[-1] != about:
            around.append(about)
    beliefs = any(opinion is not None for opinion in opinions)
    return Gathered(
        path, source, data_format.read, name_of_format(data_format), beliefs, rows_read(source), bad, dict(columns),
        {name: count for name, count in columns.items() if name not in read_columns},
        list(groups), list(models), *(np.asarray(rows[name], np.int64) for name in ("row", "prompt", "unit", "group", "size")),
        opinions, dict(prompts), left_out, *_arrays(found),
    )  # fmt: skip


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _responses(
    found: dict[str, list], example: Example, position: int, prompts: tuple[set[str], Any], models: list[int]
) -> None:
    about, around = prompts
    others = [words for words in around if words != about]
    for k, response in enumerate(example.responses):
        text = texts.plain(response)
        hashes, content = texts.hashed(texts.words(text)), texts.content_words(text)
        own, other = texts.share(about, content), [texts.share(words, content) for words in others]
        known = len(about) >= 3 and len(other) > 0 and len(hashes) >= 10
        found["of"].append(position)
        found["which"].append(k)
        found["score"].append(_score(example, k))
        found["characters"].append(len(text))
        found["text"].append(texts.joined_hash(hashes))
        found["bands"].append(texts.sketch(hashes))
        found["edges"].append(texts.edges(hashes))
        found["model"].append(models[k] if models else -1)
        found["relevance"].append(np.nan if not known else 0.5 + 0.5 * float(np.sign(own - np.mean(other))))
        found["empty"].append(is_empty(response))
        found["exact"].append(texts.hashed([text])[0])


def _score(example: Example, k: int) -> float:
    if example.scores is not None:
        return example.scores[k]
    return np.nan if example.desirable is None else float(example.desirable)


def models_of(row: Mapping, example: Example) -> list[str]:
    """Who wrote each response, where a usual column says it; else nothing."""
    count = len(example.responses)
    completions = dict.get(row, "completions")
    if isinstance(completions, list | tuple) and completions and all(isinstance(c, Mapping) for c in completions):
        found = [c.get("model") for c in completions]
    elif isinstance(dict.get(row, "models"), list | tuple):
        found = list(dict.get(row, "models"))
    else:
        found = [dict.get(row, f"{which}_model") or dict.get(row, f"{which}-model") for which in ("chosen", "rejected")]
    return [str(name) for name in found] if len(found) == count and all(isinstance(n, str) and n for n in found) else []


def _arrays(found: dict[str, list]) -> list[np.ndarray]:
    kinds = {
        "of": np.int64, "which": np.int64, "score": np.float64, "characters": np.int64, "text": np.uint64,
        "bands": np.uint64, "edges": np.uint64, "model": np.int64, "relevance": np.float64, "empty": bool,
        "exact": np.uint64,
    }  # fmt: skip
    shapes = {"bands": (0, texts.BANDS), "edges": (0, 2)}
    return [
        np.asarray(found[name], kind) if found[name] else np.empty(shapes.get(name, (0,)), kind) for name, kind in kinds.items()
    ]
