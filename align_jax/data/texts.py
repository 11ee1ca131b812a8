"""Texts of plain language modelling as a data set: each in pieces, a group of one response a piece."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.data.config import DataConfig
from align_jax.data.encode import Encoder
from align_jax.data.members import Member, members_of
from align_jax.data.named import find_named
from align_jax.data.packing.plan import GroupSize, group_size
from align_jax.data.records import Segment, TokenGroup
from align_jax.data.sources import Part, RowError, open_source
from align_jax.errors import UserError
from align_jax.terminal import plural

KEY = "data.eval_text"
_SIZES = 256  # groups whose lengths stand for those of all


class TextPieces:
    """Pieces of texts, each a response to what stands before it: BOS, where the tokenizer puts one, and the token before.

    So of a text no token is left out but, without BOS, the first; and none is scored twice.

    Args:
      texts: as token ids. prefix: what the tokenizer puts before a text of its own.
      length: most tokens of a piece. path: of the texts.

    Attributes:
      slots: responses of a group, 1. text_ids: int `[pieces]`, the text that a piece is of.
      fingerprint: a hash of all tokens, for caches.
    """

    slots = 1

    def __init__(self, texts: Sequence[Sequence[int]], prefix: Sequence[int], length: int, path: str):
        self.path = path
        found = [(number, *piece) for number, ids in enumerate(texts) for piece in _pieces(list(ids), list(prefix), length)]
        if not found:
            raise UserError(f"{KEY}: {path} has no text of two tokens or more")
        self.text_ids = np.asarray([number for number, _, _ in found])
        self._pieces = [(np.asarray(prompt, np.int32), np.asarray(tokens, np.int32)) for _, prompt, tokens in found]
        self.limits = (max(1, len(prefix)), length)
        self.fingerprint = hashlib.sha256(repr([(p.tolist(), t.tolist()) for p, t in self._pieces]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> TokenGroup:
        prompt, tokens = self._pieces[index]
        return TokenGroup(int(index), prompt, (Segment(tokens, 0),), 1)

    @functools.cached_property
    def sizes(self) -> list[GroupSize]:
        """Lengths of some groups, evenly spaced."""
        at = np.unique(np.linspace(0, len(self) - 1, _SIZES).round().astype(int))
        return [group_size(self[int(i)]) for i in at]

    @property
    def tokens(self) -> int:
        """How many are scored."""
        return sum(len(tokens) for _, tokens in self._pieces)

    @property
    def summary(self) -> str:
        """How much there is, in words."""
        texts = plural(len(np.unique(self.text_ids)), "text")
        return f"{self.tokens} tokens of {texts} of {self.path}, in {plural(len(self), 'piece')}"


def _pieces(ids: list[int], prefix: list[int], length: int) -> Iterator[tuple[list[int], list[int]]]:
    first = 0 if prefix else 1
    for start in range(first, len(ids), length):
        yield [*prefix, *ids[max(start - 1, 0) : start]], ids[start : start + length]


def read_pieces(data: DataConfig, encoder: Encoder, context: int, spool_dir: Path | None = None) -> TextPieces:
    """The texts of `data.eval_text`, in pieces of `data.max_response_tokens` tokens, or of what the context leaves.

    Args:
      context: most positions of the model.

    Raises:
      UserError: a file that cannot be read, rows without `text`, no text.
    """
    prefix = encoder.tokens.prefix
    length = min(data.max_response_tokens, context - len(prefix) - 1)
    members = members_of(data.eval_text, KEY)
    texts = [encoder.tokens.ids(text) for member in members for text in texts_of(member, data, spool_dir)]
    return TextPieces(texts, prefix, length, " + ".join(_path(member) for member in members))


def _path(member: Member) -> str:
    return str(member.path) if member.path is not None else find_named(member.name, f"{KEY}.name").hub


def texts_of(member: Member, data: DataConfig, spool_dir: Path | None) -> Iterable[str]:
    """The texts of a data set of `data.eval_text`; of a .txt file all of it is one.

    Raises:
      UserError: a file that cannot be read, rows without `text`.
    """
    path = _path(member)
    if Path(path).suffix.lower() == ".txt":
        try:
            return [Path(path).expanduser().read_text(encoding="utf-8")]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{KEY}: {path}: {error}") from error
    limits = [limit for limit in (member.limit, data.max_rows) if limit is not None]
    options = {"split": member.split or "test", "subset": member.subset, "revision": member.revision, "shared": True}
    streaming = data.streaming if member.streaming is None else member.streaming
    source = open_source(
        member.path or path,
        Part("eval", **options, streaming=streaming, max_rows=min(limits, default=None)),
        spool_dir=spool_dir,
    )
    return [_text(source, number) for number in range(len(source))]


def _text(source: Any, number: int) -> str:
    try:
        text = source[number].get("text")
    except RowError as error:
        raise UserError(f"{source.where(number)}: {error}") from error
    if not isinstance(text, str):
        raise UserError(f"{source.where(number)}: {KEY} reads the column `text`, which holds {text!r} here; it must be text")
    return text
