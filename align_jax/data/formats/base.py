"""What every format is: which columns its rows have, and what its data can answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from align_jax.data.formats.example import Example
from align_jax.data.sources import RowError


class Format:
    """Base of all formats; a subclass defines `parse`.

    Class attributes:
      name: the value of `data.format`, for a format of this folder.
      evaluated_as: name of the objective whose metrics are measured on such data, whatever is trained; None: the objective
        that is trained.
      responses: how many responses every row has: 0 for prompts alone, 2 for pairs; None for any number.
      has_beliefs: whether rows have `Example.opinion`.
      columns: that every row has, by which `data.format: auto` knows it; none: it is never chosen so.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ()
    evaluated_as: ClassVar[str | None] = None
    responses: ClassVar[int | None] = None
    has_beliefs: ClassVar[bool] = False

    def parse(self, row: Mapping) -> Example:
        """The columns of this format as an example; RowError names what is malformed. `group` and `context` are added."""
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
    """The example with the row's optional columns, once every conversation was seen to end with the assistant's words."""
    for i, response in enumerate(example.responses):
        if not isinstance(response, str) and response[-1]["role"] != "assistant":
            raise RowError(f"response {i}: the last message must be the assistant's, not of {response[-1]['role']!r}")
    group, context = (str(row.get(name) or "") for name in ("group", "context"))
    return dataclasses.replace(example, group=group, context=context)
