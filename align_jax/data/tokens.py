"""Text to token ids as the tokenizer itself gives them, also in the middle of a text; data never becomes a control token."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from align_jax.errors import UserError

# Around a control token that stands in a text of the data: no characters, says Unicode, and they come through a template.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_ANCHORS = ("\n", "\x01", "|")  # what stands before a text that is not the first one, where nothing else is known


class TextTokens:
    """A tokenizer's own ids of texts, of continuations, and of texts in which control tokens were marked to stay text.

    Args:
      tokenizer: of transformers.
      vocab_size: of the model; a token beyond it is an error. None does not check.

    Attributes:
      prefix: ids that the tokenizer puts before a text of its own (BOS, where it adds one).
    """

    def __init__(self, tokenizer: Any, vocab_size: int | None = None):
        self.tokenizer, self._vocab_size = tokenizer, vocab_size
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._added = {token.content: (number, token) for number, token in added.items()}
        self._special = [text for text, (_, token) in self._added.items() if token.special]
        # Also the first call, before there are threads: it may change the tokenizer's own settings, later ones do not.
        own, bare = (self._own_ids("a", add_special_tokens=add) for add in (True, False))
        at = next((i for i in range(len(own)) if own[i : i + len(bare)] == bare), 0)
        self.prefix: list[int] = own[:at]
        self._any_added = _pattern(self._added)

    def ids(self, text: str) -> list[int]:
        """Ids of a text as the tokenizer gives them, without the special tokens that it adds; marked ones are text."""
        found = self._sections(text) if _OPEN in text else self._own_ids(text)
        if self._vocab_size is not None and found and max(found) >= self._vocab_size:
            token = self.tokenizer.convert_ids_to_tokens(max(found))
            raise UserError(
                f"the tokenizer gives token {token!r} the number {max(found)}, but the model's vocabulary ends at "
                f"{self._vocab_size - 1}; use the tokenizer that belongs to the model (model.tokenizer)"
            )
        return found

    def after(self, before: Sequence[int], text: str, more: str) -> tuple[list[int], bool]:
        """Ids of `more` as a continuation of a text, and whether a token would have merged across the boundary.

        The ids of both together, less those of the text; where these do not begin with those of the text, `more` as what
        follows a text: without the word-mark that a tokenizer puts before a text of its own. Decoded, both ids give both texts.

        Args:
          before: ids of `text`, without `prefix`. text, more: may hold marked tokens.
        """
        start = self._last_added(text)  # a control token ends what can merge
        known = self.ids(text[:start]) if start else []
        joint = [*known, *self.ids(text[start:] + more)]
        if joint[: len(before)] == list(before):
            return joint[len(before) :], False
        return self.continuation(more), True

    def continuation(self, text: str) -> list[int]:
        """Ids of a text that is not the first one: without the word-mark that some tokenizers put before each."""
        return self._behind_anchor(text, self.ids)

    @property
    def special(self) -> tuple[str, ...]:
        """The control tokens, as they are written."""
        return tuple(self._special)

    @property
    def added(self) -> tuple[str, ...]:
        """All tokens that are matched whole before a text is split into pieces, the control tokens among them."""
        return tuple(self._added)

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of the control tokens."""
        return frozenset(self._added[text][0] for text in self._special)

    def added_in(self, template: str) -> tuple[str, ...]:
        """The tokens outside the vocabulary proper that a template writes, control tokens left out."""
        return tuple(t for t in self._added if t not in self._special and t in template)

    def _own_ids(self, text: str, add_special_tokens: bool = False) -> list[int]:
        with _named(text):
            return list(self.tokenizer(text, add_special_tokens=add_special_tokens, split_special_tokens=False)["input_ids"])

    def _behind_anchor(self, text: str, ids: Any) -> list[int]:
        if not self._marks_texts:
            return ids(text)
        for anchor in _ANCHORS:
            before, both = ids(anchor), ids(anchor + text)
            if both[: len(before)] == before:
                return both[len(before) :]
        return ids(text)

    @functools.cached_property
    def _marks_texts(self) -> bool:
        """Whether a word-mark is put before a text: the same word has another token behind a line's end."""
        return self._own_ids("\na")[-1:] != self._own_ids("a")

    @functools.cached_property
    def _marks_sections(self) -> bool:
        """Whether a word-mark is put behind a control token, too."""
        token = next(iter(self._special), None)
        return token is not None and self._own_ids(token + "a")[1:] == self._own_ids("a")

    def _last_added(self, text: str) -> int:
        """Where the last control token of a text begins that takes no space before it, 0 where there is none."""
        if self._any_added is None:
            return 0
        ends = (m.start() for m in self._any_added.finditer(_masked(text)) if m[0] in self._ends_merges)
        return max(ends, default=0)

    @functools.cached_property
    def _ends_merges(self) -> set[str]:
        return {text for text in self._special if not self._added[text][1].lstrip}

    def _sections(self, text: str) -> list[int]:
        """Ids of a text with marked tokens: what stands between real control tokens is tokenized as if there were none."""
        found, at, after = [], 0, None
        matches = list(self._any_added.finditer(_masked(text))) if self._any_added else []
        for match in [*matches, None]:
            section = unmarked(text[at : match.start() if match else len(text)])
            if after is not None and after.rstrip:
                section = section.lstrip()
            number, token = self._added[match[0]] if match else (None, None)
            if token is not None and token.lstrip:
                section = section.rstrip()
            if section:
                begins = at == 0 or self._marks_sections
                found += self._text_ids(section) if begins else self._behind_anchor(section, self._text_ids)
            if match:
                found.append(number)
                at, after = match.end(), token
        return found

    def _text_ids(self, text: str) -> list[int]:
        """Ids of a text in which nothing is a control token."""
        with _named(text):
            if self._text_only is None:
                return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
            found = self._text_only.encode(text, add_special_tokens=False).ids
        if self._ends_of_text.isdisjoint(found):
            return found
        # A vocabulary may hold a control token as an ordinary piece, too: then its first letter is a piece of its own.
        apart = [part for whole in re.split(f"({_pattern(self._special).pattern})", text) for part in self._halves(whole)]
        first, *rest = filter(None, apart)
        later = (self._behind_anchor(part, lambda t: self._text_only.encode(t, add_special_tokens=False).ids) for part in rest)
        return [*self._text_only.encode(first, add_special_tokens=False).ids, *itertools.chain.from_iterable(later)]

    def _halves(self, text: str) -> tuple[str, ...]:
        return (text[:1], text[1:]) if text in self._special else (text,)

    @functools.cached_property
    def _ends_of_text(self) -> frozenset[int]:
        """The control tokens, but the one that stands for what the vocabulary does not have."""
        return self.special_ids - {self.tokenizer.unk_token_id}

    @functools.cached_property
    def _text_only(self) -> Any:
        """The tokenizer without tokens that are added to its vocabulary; None where it is none of `tokenizers`."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        from tokenizers import Tokenizer

        return Tokenizer.from_str(json.dumps({**json.loads(backend.to_str()), "added_tokens": [], "post_processor": None}))


@contextlib.contextmanager
def _named(text: str) -> Iterator[None]:
    """A UserError for whatever a tokenizer raises, also a panic of Rust: its own file may be at odds with itself."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"the tokenizer cannot tell the tokens of {text[:40]!r}: {type(error).__name__}: {said}; is its file whole?"
        ) from error


def marker(tokens: Sequence[str]) -> Any:
    """What marks these tokens in texts, so that they stay text: a function of a text."""
    pattern = _pattern(tokens)

    def mark(text: str) -> str:
        text = unmarked(text)
        return text if pattern is None else pattern.sub(f"{_OPEN}\\g<0>{_CLOSE}", text)

    return mark


def unmarked(text: str) -> str:
    """A text without marks."""
    return text.replace(_OPEN, "").replace(_CLOSE, "")


def is_marked(text: str) -> bool:
    """Whether a text holds a marked token."""
    return _OPEN in text


def _pattern(tokens: Any) -> re.Pattern | None:
    """One of some texts, the longest that fits; None where there is none."""
    longest = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest))) if longest else None


def _masked(text: str) -> str:
    """The text with what is marked blanked out, at equal length."""
    return re.sub(f"{_OPEN}.*?{_CLOSE}", lambda m: "\0" * len(m[0]), text, flags=re.DOTALL)
