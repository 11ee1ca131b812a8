"""What every format is: which columns its rows have, and what its data can answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from align_jax.data.formats.example import Example, Text
from align_jax.data.formats.fields import said
from align_jax.data.formats.messages import objects, short, with_system, words
from align_jax.data.sources import RowError, Source


class Format:
    """Base of all formats; a subclass defines `parse`.

    Class attributes:
      name: the value of `data.format`, for a format of this folder.
      evaluated_as: name of the objective whose metrics are measured on such data, whatever is trained; None: the objective
        that is trained.
      responses: how many responses every row has: 0 for prompts alone, 2 for pairs; None for any number.
      has_beliefs: whether rows have `Example.opinion`.
      judged: whether rows say how good a response is, by scores, a label or what it stands against.
      columns: that every row has, by which `data.format: auto` knows it; none: it is never chosen so.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ()
    evaluated_as: ClassVar[str | None] = None
    responses: ClassVar[int | None] = None
    has_beliefs: ClassVar[bool] = False
    judged: ClassVar[bool] = True

    @property
    def parts(self) -> tuple[Format, ...]:
        """The formats that rows have: this one, or those of a mixture."""
        return (self,)

    @property
    def representative(self) -> Format:
        """The format by whose name rows like these are evaluated: this one, or one of a mixture."""
        return self

    def arranged(self, source: Source) -> Source:
        """The source with a row for every group, where its own rows are parts of one, or several."""
        return source

    def parse(self, row: Mapping) -> Example:
        """The columns of this format as an example; RowError names what is malformed. `group`, `context`, `system`, `tools` and
        `documents` are added.
        """
        raise TypeError(f"{type(self).__name__} does not define `parse`")

    def read(self, row: Mapping) -> Example:
        """A row with what is the same in every format: optional columns, and answers that end with the assistant's words.

        Args:
          row: column -> value.

        Raises:
          RowError: what is malformed; whoever knows the row's place adds it.
        """
        return completed(self.parse(row), row)

    def read_responses(self, row: Mapping) -> Example:
        """The prompt and the responses of a row, its scores left out."""
        return dataclasses.replace(self.read(row), scores=None)


def completed(example: Example, row: Mapping) -> Example:
    """The example with the row's optional columns, once every conversation was seen to be an answer."""
    for i, response in enumerate(example.responses):
        if not isinstance(response, str):
            _check_answer(example.prompt, response, i)
    found: dict = {name: said(row.get(name)) for name in ("group", "context")}
    for name in ("tools", "documents"):
        given = objects(row.get(name), name)
        found[name] = getattr(example, name) if given is None else tuple(given)
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise RowError(f"field 'system': expected text, got {type(system).__name__}")
    prompt = with_system(example.prompt, system) if system and system.strip() else example.prompt
    return dataclasses.replace(example, prompt=prompt, **found)


def _check_answer(prompt: Text, answer: Sequence[Mapping], number: int) -> None:
    """RowError for messages that do not end with the assistant's words, or are a whole conversation with another prompt."""
    if answer[-1]["role"] != "assistant":
        raise RowError(f"response {number}: the last message must be the assistant's, not of {answer[-1]['role']!r}")
    asked = isinstance(prompt, str) or prompt[-1]["role"] != "assistant"
    if asked and answer[0]["role"] in ("system", "user"):
        who, last = answer[0]["role"], prompt if isinstance(prompt, str) else words(prompt[-1])
        raise RowError(
            f"response {number} begins with what the {who} says, {short(words(answer[0]))}, and not with an answer "
            f"to the prompt, which ends with {short(last)}"
        )
